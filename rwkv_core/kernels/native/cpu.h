// What this machine offers.
#pragma once

namespace anser {

// Physical cores that this process may use: those of its affinity mask, at most as many as a control
// group's quota pays for. At least 1.
int usable_cores();

}  // namespace anser
