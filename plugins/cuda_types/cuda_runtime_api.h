// All that TensorRT's headers need of CUDA's, so that the plugin library is built without them.
#pragma once

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
