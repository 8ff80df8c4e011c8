/// Holds an object that lives on one thread, for somebody whose own end may come on any.
///
/// Unchecked, because the rule is not the compiler's to see: only code on the virtual CPU's thread touches `value`,
/// that is code isolated to the sandbox, and the last block its thread runs. An isolated `deinit` would say the same,
/// but clients do not compile with optimisation then (Swift 6.3).
final class ThreadConfined<Value>: @unchecked Sendable {
    var value: Value?
}
