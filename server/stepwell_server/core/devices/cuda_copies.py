"""Source text of the GPU's kernels that copy ranges: what `copies.py` is for the CPU, with conversion on the way.

Like emitted kernels it includes nothing, so that the tests compile it as C++. One thread copies one element; all take
offsets in bytes of the vector's type.
"""

# The types that arrive, and those that vectors have.
ARRIVING = {"float16": "Half", "bfloat16": "BFloat16", "float32": "float", "float64": "double"}
STATES = {"float32": "float", "float64": "double"}

_COMMON = """typedef long long int64;

struct Half { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

union Bits {
    unsigned word;
    float number;
};

static __device__ __forceinline__ double widened(double number) { return number; }
static __device__ __forceinline__ float widened(float number) { return number; }

static __device__ __forceinline__ float widened(BFloat16 number) {
    Bits bits;
    bits.word = unsigned(number.bits) << 16;
    return bits.number;
}

// Exact for every number: 5 bits of exponent become 8, subnormal numbers normal ones.
static __device__ __forceinline__ float widened(Half number) {
    const unsigned sign = unsigned(number.bits & 0x8000u) << 16, magnitude = number.bits & 0x7fffu;
    Bits bits;
    if (magnitude >= 0x7c00u) {
        bits.word = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
    } else if (magnitude >= 0x400u) {
        bits.word = sign | ((magnitude << 13) + (112u << 23));
    } else {
        bits.number = float(magnitude) * (1.0f / 16777216.0f);
        bits.word |= sign;
    }
    return bits.number;
}

// Which parameter a packed offset belongs to.
static __device__ __forceinline__ int64 find(const int64* __restrict__ packed_offsets, int64 parameters, int64 at) {
    int64 low = 0, high = parameters;
    while (high - low > 1) {
        const int64 middle = (low + high) / 2;
        if (packed_offsets[middle] <= at) low = middle; else high = middle;
    }
    return low;
}
"""

_PLACE = """
extern "C" __global__ void place_{arriving}_{state}(
    {to}* __restrict__ vector, const {type}* __restrict__ packed, int64 begin, int64 elements,
    const int64* __restrict__ packed_offsets, const int64* __restrict__ vector_offsets, int64 parameters
) {{
    const int64 element = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (element >= elements) return;
    const int64 at = begin + element * int64(sizeof({to}));
    const int64 place = find(packed_offsets, parameters, at);
    const int64 target = vector_offsets[place] + at - packed_offsets[place];
    vector[target / int64(sizeof({to}))] = {to}(widened(packed[element]));
}}
"""

_GATHER = """
extern "C" __global__ void gather_{state}(
    const {to}* __restrict__ vector, {to}* __restrict__ packed, int64 begin, int64 elements,
    const int64* __restrict__ packed_offsets, const int64* __restrict__ vector_offsets, int64 parameters
) {{
    const int64 element = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (element >= elements) return;
    const int64 at = begin + element * int64(sizeof({to}));
    const int64 place = find(packed_offsets, parameters, at);
    const int64 source = vector_offsets[place] + at - packed_offsets[place];
    packed[element] = vector[source / int64(sizeof({to}))];
}}
"""


def text() -> str:
    """Kernels `place_<arriving>_<state>` and `gather_<state>`, by NumPy's names of the types."""
    parts = ["// Copies between packed ranges and vectors.", _COMMON]
    for state, to in STATES.items():
        parts += [_PLACE.format(arriving=name, type=kind, state=state, to=to) for name, kind in ARRIVING.items()]
        parts.append(_GATHER.format(state=state, to=to))
    return "\n".join(parts)
