// The smallest Embedded Swift guest that says something.

import MicroVMGuest

/// Writes a line to standard output: `print` goes through the runtime's `putchar`.
@c public func hello() {
    print("Hello from Swift in a micro-VM")
}

@c public func answer() -> Int {
    42
}
