#include "arena.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#define ANSER_HAS_MMAP 1
#endif

#if defined(__SANITIZE_ADDRESS__)
#define ANSER_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ANSER_ADDRESS_SANITIZER 1
#endif
#endif

namespace anser {

struct Mapping {
    uint8_t* start;  // of what was allocated
    size_t length;
    uint8_t* next;  // from here on it is free
    uint8_t* end;
    int64_t arenas;
};

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kAlignment = 64;
#if defined(ANSER_HAS_MMAP) && !defined(ANSER_ADDRESS_SANITIZER)
// What is never touched costs nothing. But the last huge page that is touched is whole: with one
// mapping for every large matrix a model of 2.9B took 135 MB more than its weights.
constexpr size_t kMappingSize = size_t{256} << 20;
#else
constexpr size_t kMappingSize = 0;  // each arena is its own: a sanitizer sees its end
#endif

size_t rounded_up(size_t size, size_t unit) {
    if (size > SIZE_MAX - unit) throw std::bad_alloc();
    return (size + unit - 1) / unit * unit;
}

#if defined(ANSER_HAS_MMAP) && !defined(ANSER_ADDRESS_SANITIZER)

Mapping* new_mapping(size_t size) {
    const size_t length = rounded_up(size, kHugePage) + kHugePage;  // room to align the start
    void* start =
        mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    uint8_t* bytes = static_cast<uint8_t*>(start);
    uint8_t* aligned = bytes + (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
    const size_t usable = rounded_up(size, kHugePage);
#if defined(MADV_HUGEPAGE)
    madvise(aligned, usable, MADV_HUGEPAGE);  // advice: without it all works, slower
#endif
    return new Mapping{bytes, length, aligned, aligned + usable, 0};
}

// The memory of a part that nobody uses any more, while its neighbours stay.
void give_back(uint8_t* data, size_t size) {
    constexpr uintptr_t kPage = uintptr_t{64} << 10;  // a multiple of any system's
    const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + size) / kPage * kPage;
    if (first >= last) return;
    void* start = reinterpret_cast<void*>(first);
#if defined(MADV_NOHUGEPAGE)
    // Or the system fills the hole again, to make a huge page of it and its neighbours.
    madvise(start, last - first, MADV_NOHUGEPAGE);
#endif
    madvise(start, last - first, MADV_DONTNEED);
}

void free_mapping(Mapping* mapping) {
    munmap(mapping->start, mapping->length);
    delete mapping;
}

#else

void give_back(uint8_t*, size_t) {}

Mapping* new_mapping(size_t size) {
    const size_t length = size + kAlignment;
    void* start = std::calloc(length, 1);
    if (!start) throw std::bad_alloc();
    uint8_t* bytes = static_cast<uint8_t*>(start);
    uint8_t* aligned =
        bytes + (kAlignment - reinterpret_cast<uintptr_t>(start) % kAlignment) % kAlignment;
    return new Mapping{bytes, length, aligned, aligned + size, 0};
}

void free_mapping(Mapping* mapping) {
    std::free(mapping->start);
    delete mapping;
}

#endif

size_t room(const Mapping* mapping) {
    return mapping ? static_cast<size_t>(mapping->end - mapping->next) : 0;
}

std::mutex lock;
Mapping* current = nullptr;  // where small arenas go, if it has room

}  // namespace

Arena::Arena(size_t size) : size_(size) {
    const size_t needed = rounded_up(std::max(size, size_t{1}), kAlignment);
    const std::lock_guard<std::mutex> guard(lock);
    if (needed <= room(current)) {
        mapping_ = current;
    } else {
        mapping_ = new_mapping(std::max(needed, kMappingSize));
        if (room(mapping_) - needed > room(current)) current = mapping_;
    }
    data_ = mapping_->next;
    mapping_->next += needed;
    ++mapping_->arenas;
}

Arena::~Arena() {
    const std::lock_guard<std::mutex> guard(lock);
    if (--mapping_->arenas) {
        give_back(data_, size_);
        return;
    }
    if (current == mapping_) current = nullptr;
    free_mapping(mapping_);
}

}  // namespace anser
