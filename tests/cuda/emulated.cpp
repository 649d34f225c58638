// Runs a kernel's threads on a CPU, one block after another.
//
// The threads of a block are fibers, each running until it waits for others, in the order that the launch asks for:
// first to last, last to first, or shuffled anew at every turn. Results must not depend on it, so a barrier that is
// missing shows. Shared memory is NaN when a block starts, and what lies past it is guarded.

#include "emulated.h"

#include <csetjmp>
#include <memory>
#include <random>
#include <string>
#include <algorithm>
#include <numeric>
#include <vector>
#include <ucontext.h>

dim3 blockDim, gridDim, blockIdx;

namespace emulated {

const size_t STACK = 1 << 18, SHARED = 228 << 10, GUARD = 4096;
const unsigned char POISON = 0xff;  // as float32 it is NaN

struct Fiber {
    ucontext_t start;
    jmp_buf here;
    std::unique_ptr<char[]> stack;
    State state;
    bool started;
};

unsigned current, exchanged[1024];
alignas(256) unsigned char memory[SHARED + GUARD];

static std::vector<std::unique_ptr<Fiber>> fibers;
static jmp_buf scheduler;
static void (*body)(void*);
static void* call;

void wait(State state) {
    Fiber& fiber = *fibers[current];
    fiber.state = state;
    if (!_setjmp(fiber.here)) _longjmp(scheduler, 1);
}

static void entry() {
    body(call);
    fibers[current]->state = DONE;
    _longjmp(scheduler, 1);
}

// Let one thread run until it waits or ends.
static void run(unsigned thread) {
    current = thread;
    Fiber& fiber = *fibers[thread];
    if (_setjmp(scheduler)) return;
    fiber.state = RUNNING;
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, entry, 0);
    setcontext(&fiber.start);
}

// Let those of a range go on where all of them wait as `state` says.
static bool release(unsigned first, unsigned last, State state) {
    for (unsigned t = first; t < last; t++)
        if (fibers[t]->state != state) return false;
    for (unsigned t = first; t < last; t++) fibers[t]->state = RUNNING;
    return true;
}

// Run one block; what went wrong, or nothing.
static std::string block(unsigned threads, int order, std::mt19937& random) {
    for (unsigned t = 0; t < threads; t++) fibers[t]->started = false, fibers[t]->state = RUNNING;
    std::vector<unsigned> turn(threads);
    std::iota(turn.begin(), turn.end(), 0u);
    if (order == 1) std::reverse(turn.begin(), turn.end());
    while (true) {
        if (order == 2) std::shuffle(turn.begin(), turn.end(), random);
        for (unsigned t : turn)
            if (fibers[t]->state == RUNNING) run(t);
        bool freed = release(0, threads, AT_BARRIER);
        for (unsigned first = 0; first < threads; first += 32)
            freed |= release(first, std::min(first + 32, threads), AT_WARP);
        if (freed) continue;
        unsigned counts[4] = {};
        for (unsigned t = 0; t < threads; t++) counts[fibers[t]->state]++;
        if (counts[DONE] == threads) return "";
        return "threads wait in vain: " + std::to_string(counts[AT_BARRIER]) + " at a barrier, " +
               std::to_string(counts[AT_WARP]) + " for their warp, and " + std::to_string(counts[DONE]) + " have ended";
    }
}

const char* launch(
    void (*of)(void*), void* with, const unsigned* grid, const unsigned* size, unsigned shared, int order) {
    static std::string problem;
    const unsigned threads = size[0] * size[1] * size[2];
    if (threads == 0 || threads > 1024 || size[1] * size[2] > 1 || shared > SHARED)
        return "more threads, axes or shared memory than a block has here";
    body = of;
    call = with;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {size[0], size[1], size[2]};
    while (fibers.size() < threads) {
        fibers.emplace_back(new Fiber);
        fibers.back()->stack.reset(new char[STACK]);
    }
    std::mt19937 random(7);
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                std::memset(memory, POISON, shared + GUARD);
                problem = block(threads, order, random);
                for (size_t i = shared; i < shared + GUARD && problem.empty(); i++)
                    if (memory[i] != POISON) problem = "a thread wrote past the shared memory of its block";
                if (!problem.empty()) return problem.c_str();
            }
    return nullptr;
}

}  // namespace emulated
