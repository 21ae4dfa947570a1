// The TensorRTs that this process has loaded: which is which, their registries, their log.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

namespace amsa {

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// One line into TensorRT's log as an error; on stderr where no TensorRT has one.
void log_error(const std::string& line) noexcept;

// Whether an address is in a library of TensorRT-RTX. Every other one counts as classic TensorRT.
bool is_in_rtx(const void* address);

// Whether one of the functions that led here is TensorRT's.
bool is_called_by_tensorrt();

std::vector<nvinfer1::IPluginRegistry*> loaded_registries();

}  // namespace amsa
