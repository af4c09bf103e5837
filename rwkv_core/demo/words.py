"""Word lists of the demo's dialogues, and words made up on the spot so that it learns to copy."""

from __future__ import annotations

import random


def words(text: str) -> tuple[str, ...]:
    """The words of a text; lists read best as prose."""
    return tuple(text.split())


NAMES = words(
    """Alice Bob Carol David Emma Frank Grace Henry Isabel Jack Karen Liam Maria Noah Olivia
    Paul Rachel Samuel Tina Victor Wendy Adam Amy Andrew Anna Anthony Ben Brian Charles
    Charlotte Chris Clara Daniel Diana Dylan Edward Elena Elizabeth Ella Eric Ethan Eva Felix
    Fiona Gabriel George Hannah Harry Helen Hugo Ian Irene Ivan James Jane Jason Jennifer
    Jessica John Joseph Julia Kate Kevin Laura Leo Lily Linda Lisa Louis Lucas Lucy Luke Marcus
    Mark Martin Mary Matthew Megan Mia Michael Michelle Mike Nadia Nancy Nathan Nicole Nina
    Oliver Omar Oscar Patrick Peter Philip Rebecca Richard Robert Rosa Ruth Ryan Sam Sara Sarah
    Simon Sofia Sophie Stella Stephen Steve Susan Thomas Tim Tom Vera Vincent William Yuki Zoe
    Ahmed Ali Amina Carlos Chen Diego Fatima Hana Ines Jin Jorge Juan Kai Lena Ling Luca Marco
    Mei Mohammed Olga Pedro Priya Raj Ravi Sanjay Sven Tomas Wei Yusuf"""
)
CITIES = words(
    """Paris London Berlin Madrid Rome Vienna Prague Warsaw Lisbon Dublin Athens Oslo Stockholm
    Helsinki Copenhagen Amsterdam Brussels Zurich Geneva Munich Hamburg Milan Venice Naples
    Turin Florence Barcelona Seville Valencia Porto Lyon Nice Marseille Bordeaux Budapest
    Bucharest Sofia Belgrade Zagreb Krakow Kiev Riga Vilnius Tallinn Moscow Istanbul Ankara
    Cairo Tunis Algiers Lagos Nairobi Accra Dakar Tokyo Osaka Kyoto Seoul Busan Beijing Shanghai
    Shenzhen Taipei Hanoi Bangkok Singapore Jakarta Manila Delhi Mumbai Chennai Karachi Lahore
    Dhaka Kabul Tehran Baghdad Dubai Doha Riyadh Beirut Sydney Melbourne Perth Brisbane Auckland
    Wellington Toronto Montreal Vancouver Ottawa Boston Chicago Denver Seattle Houston Dallas
    Austin Phoenix Miami Atlanta Detroit Portland Oakland Havana Bogota Lima Quito Santiago
    Caracas Brasilia Salvador Edinburgh Glasgow Manchester Liverpool Oxford Cambridge Bristol
    Cardiff Leeds"""
)
PETS = words("cat dog rabbit hamster parrot turtle horse goldfish lizard pony snake mouse")
PET_NAMES = words(
    """Luna Bella Max Charlie Rocky Buddy Milo Coco Daisy Rex Fluffy Shadow Tiger Ginger Simba
    Nala Pepper Biscuit Cookie Mochi Oreo Ziggy Misty Smokey Snowy Spot Fido Felix Oscar Toby
    Jasper Chloe Ruby Rosie Bailey Duke Bruno Thor Loki Zeus Apollo Hazel Olive Poppy Willow
    Maple Pumpkin Peanut Waffles Nugget"""
)
COLORS = words(
    """blue red green yellow purple orange pink black white brown gray silver gold violet
    turquoise beige"""
)
TOPICS = words(
    """physics chemistry biology history politics music art science space mathematics philosophy
    love war peace football tennis cooking gardening dinosaurs volcanoes oceans mountains
    planets stars trees birds computers phones cars trains money taxes law medicine religion
    language poetry movies books summer winter coffee tea chocolate bread cheese robots time
    gravity electricity light energy evolution genes atoms dreams friendship"""
)
LANGUAGES = words("French German Spanish Italian Chinese Japanese Russian Dutch Greek Polish")
CURRENCIES = words("USD EUR GBP JPY CNY CHF INR CAD AUD SEK")

# A made-up word is two or three of these. Few, so that each can be one token, capital or not.
SYLLABLES = words(
    """ba be bi bo da do fa fi ka ke ki ko la le li lo lu ma mi mo na ne ni no pa po ra ri ro ru
    sa so ta ti to tu va vi za zo"""
)

# Words that an answer copies, in prose after a space and in JSON after a quote. A vocabulary that
# holds them without the space writes them alike in both places, so that there is nothing to spell.
COPIED_WORDS = (*NAMES, *CITIES, *PET_NAMES, *TOPICS, *LANGUAGES, *CURRENCIES)
COPIED_SYLLABLES = (*SYLLABLES, *(each.capitalize() for each in SYLLABLES))


def made_up(rng: random.Random, *, capital: bool = True) -> str:
    """A word that no list holds, such as "Zoramila"."""
    word = "".join(rng.choice(SYLLABLES) for _ in range(2 if rng.random() < 0.6 else 3))
    return word.capitalize() if capital else word


def proper_name(rng: random.Random, known: tuple[str, ...]) -> str:
    """Mostly a name of the list; one in five is made up or spelled in lower case."""
    chance = rng.random()
    if chance < 0.15:
        return made_up(rng)
    name = rng.choice(known)
    return name.lower() if chance < 0.20 else name


def different(rng: random.Random, known: tuple[str, ...], old: str) -> str:
    """A proper name that is not `old`, whatever its case."""
    while (name := proper_name(rng, known)).lower() == old.lower():
        pass
    return name
