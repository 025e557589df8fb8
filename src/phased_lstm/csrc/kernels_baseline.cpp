// The kernels for the baseline instruction set; the build passes the compiler flags that go with it.

#define PHASED_LSTM_LANES 4
#include "table.inl"

namespace phased_lstm {
constinit const KernelTable<float> kBaselineFloats = table<float>();
constinit const KernelTable<double> kBaselineDoubles = table<double>();
}

