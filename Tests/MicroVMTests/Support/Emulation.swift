import Glibc

/// Whether the tests run in an emulated machine, where everything takes a hundred times as long.
let isEmulated = unsafe getenv("MICROVM_EMULATED") != nil
