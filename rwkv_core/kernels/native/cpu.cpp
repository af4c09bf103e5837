#include "cpu.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"

#if defined(ANSER_HAS_DOTPROD) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__linux__)
#include <sched.h>

#include <cmath>
#include <fstream>
#include <sstream>
#endif

namespace anser {

// ---- cores --------------------------------------------------------------------------------------

#if defined(__linux__)
namespace {

std::string first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

// The processors in the affinity mask; empty when the system does not say.
std::vector<int> allowed_processors() {
    std::vector<int> allowed;
    for (int most = 1024; most <= 1 << 20; most *= 4) {  // the mask may be longer than cpu_set_t
        cpu_set_t* mask = CPU_ALLOC(most);
        if (!mask) break;
        const size_t size = CPU_ALLOC_SIZE(most);
        CPU_ZERO_S(size, mask);
        const bool is_known = sched_getaffinity(0, size, mask) == 0;
        for (int cpu = 0; is_known && cpu < most; ++cpu)
            if (CPU_ISSET_S(cpu, size, mask)) allowed.push_back(cpu);
        CPU_FREE(mask);
        if (is_known) break;
    }
    return allowed;
}

int physical_cores() {
    std::set<std::string> cores;
    for (int cpu : allowed_processors()) {
        const std::string siblings = first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                                                "/topology/thread_siblings_list");
        cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    return static_cast<int>(cores.size());
}

// Processors' worth of time in "QUOTA PERIOD" (the first may be "max"), or infinity.
double quota_of(const std::string& text) {
    std::istringstream words(text);
    double quota = 0, period = 0;
    return words >> quota >> period && quota > 0 && period > 0 ? quota / period : HUGE_VAL;
}

// Whether a list of names between commas holds one.
bool contains(const std::string& list, const std::string& name) {
    std::istringstream names(list);
    for (std::string each; std::getline(names, each, ',');)
        if (each == name) return true;
    return false;
}

// The smallest quota of the process's control groups and all above them. Inside a container the
// paths may be those of the host, which are not there: then only the root is found, the container's.
double control_group_quota() {
    double quota = HUGE_VAL;
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // "id:controllers:path"
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const bool is_unified = controllers.empty();
        if (!is_unified && !contains(controllers, "cpu")) continue;
        std::string path = line.substr(second + 1);
        for (;;) {
            if (!path.empty() && path.back() == '/') path.pop_back();
            if (is_unified) {
                quota = std::min(quota, quota_of(first_line("/sys/fs/cgroup" + path + "/cpu.max")));
            } else {
                const std::string folder = "/sys/fs/cgroup/cpu" + path + "/cpu.cfs_";
                quota = std::min(quota, quota_of(first_line(folder + "quota_us") + " " +
                                                 first_line(folder + "period_us")));
            }
            const size_t slash = path.rfind('/');
            if (slash == std::string::npos) break;
            path.resize(slash);
        }
    }
    return quota;
}

}  // namespace

int usable_cores() {
    int cores = physical_cores();
    if (!cores) cores = static_cast<int>(std::thread::hardware_concurrency());
    const double quota = std::ceil(control_group_quota());
    return std::max(1, quota < cores ? static_cast<int>(quota) : cores);
}

#else

int usable_cores() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

#endif

// ---- instruction sets ---------------------------------------------------------------------------

namespace {

// From the plainest on; ANSER_ISA names the last that may be used. Those of a kind of processor follow
// each other.
constexpr const char* kNames[] = {"portable", "neon", "dotprod", "avx2", "avx512"};

#if defined(ANSER_HAS_DOTPROD)
bool has_dot_product() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
    return true;  // every Mac with such a processor
#else
    return false;
#endif
}
#endif

std::vector<const Kernels*> detect() {
    std::vector<const Kernels*> found;
#if defined(ANSER_HAS_AVX2) || defined(ANSER_HAS_AVX512)
    __builtin_cpu_init();
    [[maybe_unused]] const bool has_avx2 = __builtin_cpu_supports("avx2") &&
                                           __builtin_cpu_supports("fma") &&
                                           __builtin_cpu_supports("f16c");
#endif
#if defined(ANSER_HAS_AVX512)
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        found.push_back(&kernels_avx512);
#endif
#if defined(ANSER_HAS_AVX2)
    if (has_avx2) found.push_back(&kernels_avx2);
#endif
#if defined(ANSER_HAS_DOTPROD)
    if (has_dot_product()) found.push_back(&kernels_dotprod);
#endif
#if defined(ANSER_HAS_NEON)
    found.push_back(&kernels_neon);
#endif
    found.push_back(&kernels_portable);
    return found;
}

const std::vector<const Kernels*>& all_supported() {
    static const std::vector<const Kernels*> found = detect();
    return found;
}

int rank_of(const char* name) {
    const auto is_name = [name](const char* each) { return std::strcmp(each, name) == 0; };
    const auto place = std::find_if(std::begin(kNames), std::end(kNames), is_name);
    return place == std::end(kNames) ? -1 : static_cast<int>(place - std::begin(kNames));
}

const Kernels* choose() {
    const char* most = std::getenv("ANSER_ISA");
    if (!most || !*most) return all_supported().front();
    const int limit = rank_of(most);
    if (limit < 0) {
        std::string names;
        for (const char* name : kNames) names += (names.empty() ? "" : ", ") + std::string(name);
        throw std::invalid_argument("ANSER_ISA=" + std::string(most) + " is none of " + names);
    }
    for (const Kernels* each : all_supported())
        if (rank_of(each->name) <= limit) return each;
    return &kernels_portable;
}

std::atomic<const Kernels*> in_use{nullptr};

}  // namespace

const Kernels* const* supported_kernels(int* count) {
    *count = static_cast<int>(all_supported().size());
    return all_supported().data();
}

const Kernels& kernels() {
    const Kernels* found = in_use.load(std::memory_order_acquire);
    if (!found) {
        found = choose();
        in_use.store(found, std::memory_order_release);
    }
    return *found;
}

void use_kernels(const char* name) {
    for (const Kernels* each : all_supported()) {
        if (std::strcmp(each->name, name) == 0) {
            in_use.store(each, std::memory_order_release);
            return;
        }
    }
    throw std::invalid_argument("this processor has no kernels \"" + std::string(name) + "\"");
}

}  // namespace anser
