// The kernels for the baseline instruction set; the build passes the compiler flags that go with it.

#define PHASED_LSTM_LANES 4
#include "panels.inl"

namespace phased_lstm {
constinit const Kernels kBaselineKernels = {"baseline", table<float>(), table<double>()};
}

