# Toolchain of scripts/build_wheels.sh, which sets these variables: WHEEL_COMPILER, WHEEL_PROCESSOR,
# WHEEL_PYTHON_INCLUDE, WHEEL_EXTENSION (the suffix of extension modules), and those of cmake/zig-c++.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR $ENV{WHEEL_PROCESSOR})
set(CMAKE_CXX_COMPILER $ENV{WHEEL_COMPILER})
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)  # pybind11 comes from the build environment

# pybind11 asks the running interpreter for the suffix and the headers; here both belong to another one.
set(Python_INCLUDE_DIR $ENV{WHEEL_PYTHON_INCLUDE})
set(PYTHON_MODULE_EXTENSION $ENV{WHEEL_EXTENSION})
set(PYTHON_MODULE_DEBUG_POSTFIX "")

# pybind11 would look for link-time optimization, which nothing here uses, and zig build a libc++ for it.
set(HAS_FLTO FALSE CACHE INTERNAL "")
set(HAS_FLTO_AUTO FALSE CACHE INTERNAL "")
set(HAS_FLTO_THIN FALSE CACHE INTERNAL "")
