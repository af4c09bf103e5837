// How fast this machine reads memory: the limit that a decode's speed is compared with.
#pragma once
#include <cstddef>

namespace anser {

// Bytes per second at which all threads together read a buffer of huge pages, as fast as the best of
// several passes. The buffer should be much larger than the caches. Throws std::bad_alloc.
double read_bandwidth(size_t num_bytes);

}  // namespace anser
