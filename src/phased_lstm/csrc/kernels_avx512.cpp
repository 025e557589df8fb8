// The kernels for the avx512 instruction set; the build passes the compiler flags that go with it.
#if defined(__x86_64__)
#define PHASED_LSTM_LANES 16
#include "table.inl"

namespace phased_lstm {
constinit const KernelTable<float> kAvx512Floats = table<float>();
}
#endif
