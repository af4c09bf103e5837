"""`anser completion SHELL`: the script with which a shell completes the command line.

The scripts know nothing of the grammar: they ask `anser __complete`, see `complete_words`.
"""

from __future__ import annotations

import argparse

DESCRIPTION = """\
Print a script that completes commands, flags and names of models. To have it in every shell, write

  eval "$(anser completion bash)"            into ~/.bashrc
  eval "$(anser completion zsh)"             into ~/.zshrc, after compinit
  anser completion fish | source             into ~/.config/fish/config.fish
  anser completion powershell | Out-String | Invoke-Expression   into $PROFILE
"""

# Bash splits words at ":" and "=", which names of models hold: the line is split again, and what
# stands before the last of them is taken off the answers, as Bash adds it itself.
_BASH = """\
_anser() {
    local line=${COMP_LINE:0:COMP_POINT} word prefix="" reply
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[${#words[@]}-1]}
    [[ $word == *[:=]* ]] && prefix=${word%"${word##*[:=]}"}
    COMPREPLY=()
    while IFS= read -r reply; do
        COMPREPLY+=("${reply#"$prefix"}")
    done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
}
complete -o default -F _anser anser
"""
_ZSH = """\
#compdef anser
_anser() {
    local -a replies
    replies=("${(@f)$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$replies" ]]; then compadd -a replies; else _files; fi
}
compdef _anser anser
"""
# Left alone, fish offers files beside the names of models: what stands behind a ":" may be a path.
_FISH = """\
function __anser_complete
    set -l replies (anser __complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)
    if set -q replies[1]
        printf '%s\\n' $replies
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c anser -f -a '(__anser_complete)'
"""
# An empty word would not reach the command from every version of PowerShell.
_POWERSHELL = """\
Register-ArgumentCompleter -Native -CommandName anser -ScriptBlock {
    param($word, $line, $position)
    $words = @($line.CommandElements | Select-Object -Skip 1 | ForEach-Object { $_.ToString() })
    if (-not $word) { $words += '""' }
    anser __complete @words 2>$null | ForEach-Object {
        [System.Management.Automation.CompletionResult]::new($_)
    }
}
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH, "powershell": _POWERSHELL}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(_SCRIPTS), help="what to print the script for")


def execute(arguments: argparse.Namespace) -> int:
    print(_SCRIPTS[arguments.shell], end="")
    return 0
