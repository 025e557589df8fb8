// The kernels for the avx512 instruction set; the build passes the compiler flags that go with it.
#if defined(__x86_64__)
#define PHASED_LSTM_LANES 16
#include "panels.inl"

namespace phased_lstm {
constinit const Kernels kAvx512Kernels = {"avx512", table<float>(), table<double>()};
}
#endif
