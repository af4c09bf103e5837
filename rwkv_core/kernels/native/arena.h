// Memory for weights: whole huge pages, where the system has them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace anser {

// Zeroed memory, aligned to 64 bytes. Huge pages make a read faster: with small ones a token's walk
// through gigabytes of weights misses the TLB at every page. Arenas are parts of large mappings, one
// after the other, so that small ones lie in huge pages too and none rounds its size up to one; a
// mapping goes back to the system with the last of its arenas.
class Arena {
  public:
    explicit Arena(size_t size);  // throws std::bad_alloc
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    uint8_t* data() { return data_; }
    const uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    size_t size_;
    struct Mapping* mapping_ = nullptr;
    uint8_t* data_ = nullptr;
};

}  // namespace anser
