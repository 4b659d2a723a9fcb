// What CUDA gives to a kernel, for a plain C++ compiler: blocks and threads one after another on one thread.
//
// This runs a kernel's arithmetic, its indices and its barriers. It shows nothing about how memory is shared on a
// device, about rounding there (a device contracts to fused multiply-adds and has its own exp), or about speed.

#pragma once

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static  // blocks run one after another

struct dim3 {
    unsigned x, y, z;
};
static dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace shim {

// Each thread of a block is a fiber: it runs up to a barrier, then it is the next one's turn.
const size_t STACK_BYTES = 64 << 10;
static std::vector<ucontext_t> fibers;
static std::vector<char> stacks;
static ucontext_t scheduler;
static std::function<void()> kernel;
static bool in_fiber = false;
static unsigned current, at_barrier, ended;

inline void body() {
    kernel();
    ++ended;
}

inline void run_block(unsigned threads) {
    fibers.resize(threads);
    stacks.resize(threads * STACK_BYTES);
    for (unsigned thread = 0; thread < threads; ++thread) {
        getcontext(&fibers[thread]);
        fibers[thread].uc_stack.ss_sp = &stacks[thread * STACK_BYTES];
        fibers[thread].uc_stack.ss_size = STACK_BYTES;
        fibers[thread].uc_link = &scheduler;
        makecontext(&fibers[thread], body, 0);
    }
    in_fiber = true;
    ended = 0;
    for (unsigned phase = 0; ended == 0; ++phase) {
        at_barrier = 0;
        for (unsigned turn = 0; turn < threads; ++turn) {
            // To and fro, so that what needs a barrier and has none goes wrong one way or the other.
            current = phase % 2 ? threads - 1 - turn : turn;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &fibers[current]);
        }
        if (at_barrier + ended != threads || (at_barrier && ended)) {
            fprintf(stderr, "%u threads of a block are at a barrier and %u have ended\n", at_barrier, ended);
            abort();
        }
    }
    in_fiber = false;
}

// Launch a kernel whose threads wait for one another.
inline void launch_with_barriers(unsigned blocks, unsigned threads, std::function<void()> work) {
    kernel = work;
    gridDim = {blocks, 1, 1};
    blockDim = {threads, 1, 1};
    for (unsigned block = 0; block < blocks; ++block) {
        blockIdx = {block, 0, 0};
        run_block(threads);
    }
}

}  // namespace shim

inline void __syncthreads() {
    if (!shim::in_fiber) abort();
    ++shim::at_barrier;
    swapcontext(&shim::fibers[shim::current], &shim::scheduler);
}

#define LAUNCH_WITH_BARRIERS(blocks, threads, call) shim::launch_with_barriers(blocks, threads, [&] { call; })

// Launch a kernel whose threads do not. (A macro, since hundreds of closures take long to compile.)
#define LAUNCH(blocks, threads, call)                                                     \
    gridDim = {blocks, 1, 1};                                                             \
    blockDim = {threads, 1, 1};                                                           \
    for (blockIdx = {0, 0, 0}; blockIdx.x < blocks; ++blockIdx.x)                         \
        for (threadIdx = {0, 0, 0}; threadIdx.x < threads; ++threadIdx.x) call
