// The kernels for the avx2 instruction set; the build passes the compiler flags that go with it.
#if defined(__x86_64__)
#define PHASED_LSTM_LANES 8
#include "table.inl"

namespace phased_lstm {
constinit const KernelTable<float> kAvx2Floats = table<float>();
constinit const KernelTable<double> kAvx2Doubles = table<double>();
}
#endif
