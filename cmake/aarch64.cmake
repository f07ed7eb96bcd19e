# Cross build for aarch64 Linux. ARM_ROOT: an arm64 Python root as scripts/arm_root.sh makes it; its headers are used, so that the
# configured sizes are the target's.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_STRIP aarch64-linux-gnu-strip)

set(ARM_ROOT "$ENV{ARM_ROOT}" CACHE PATH "arm64 Python root")
set(CMAKE_FIND_ROOT_PATH "${ARM_ROOT}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)  # pybind11 comes from the build environment

# pybind11 asks the running interpreter for the suffix and the headers; here both belong to another machine.
set(Python_INCLUDE_DIR "${ARM_ROOT}/usr/include/python3.11")
set(PYTHON_MODULE_EXTENSION ".cpython-311-aarch64-linux-gnu.so")
set(PYTHON_MODULE_DEBUG_POSTFIX "")
# Debian's pyconfig.h includes a header by its multiarch name.
include_directories(SYSTEM "${ARM_ROOT}/usr/include")
