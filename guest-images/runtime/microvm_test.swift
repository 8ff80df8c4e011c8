// Checks for test guests in Embedded Swift, which compile this file in. A test is an exported function:
//
//     @c public func test_sum() -> Int32 {
//         test { checkEqual(1 + 1, 2) }
//     }
//
// What microvm_test.h says about tests in C is so for these.

import MicroVMGuest

/// Runs the body of a test, and returns what a test returns.
func test(_ body: () -> Void) -> Int32 {
    microvm_test_begin()
    body()
    return microvm_test_end()
}

/// Checks that a condition holds; if not, the test goes on and fails.
func check(
    _ condition: Bool,
    _ message: StaticString = "check(_:) does not hold",
    fileID: StaticString = #fileID,
    line: UInt32 = #line
) {
    if !condition { report(message.description, false, fileID, line) }
}

/// Checks that two values are equal; if not, the test goes on and fails.
func checkEqual<Value: Equatable & CustomStringConvertible>(
    _ left: Value,
    _ right: Value,
    fileID: StaticString = #fileID,
    line: UInt32 = #line
) {
    compare("checkEqual(_:_:)", left, "is not", right, left == right, false, fileID, line)
}

/// Checks that two values are not equal; if they are, the test goes on and fails.
func checkNotEqual<Value: Equatable & CustomStringConvertible>(
    _ left: Value,
    _ right: Value,
    fileID: StaticString = #fileID,
    line: UInt32 = #line
) {
    compare("checkNotEqual(_:_:)", left, "is", right, left != right, false, fileID, line)
}

/// Checks that one value is less than another; if not, the test goes on and fails.
func checkLess<Value: Comparable & CustomStringConvertible>(
    _ left: Value,
    _ right: Value,
    fileID: StaticString = #fileID,
    line: UInt32 = #line
) {
    compare("checkLess(_:_:)", left, "is not less than", right, left < right, false, fileID, line)
}

/// Checks that one value is not greater than another; if it is, the test goes on and fails.
func checkLessOrEqual<Value: Comparable & CustomStringConvertible>(
    _ left: Value,
    _ right: Value,
    fileID: StaticString = #fileID,
    line: UInt32 = #line
) {
    compare("checkLessOrEqual(_:_:)", left, "is greater than", right, left <= right, false, fileID, line)
}

/// Checks that two numbers differ by no more than a third; if they do, the test goes on and fails.
func checkNear(
    _ left: Double,
    _ right: Double,
    _ tolerance: Double,
    fileID: StaticString = #fileID,
    line: UInt32 = #line
) {
    let isNear = left == right || (left - right).magnitude <= tolerance
    compare("checkNear(_:_:_:)", left, "is not near", right, isNear, false, fileID, line)
}

/// Checks that two values are equal; if not, the test ends here and has failed.
func requireEqual<Value: Equatable & CustomStringConvertible>(
    _ left: Value,
    _ right: Value,
    fileID: StaticString = #fileID,
    line: UInt32 = #line
) {
    compare("requireEqual(_:_:)", left, "is not", right, left == right, true, fileID, line)
}

/// Checks that a condition holds; if not, the test ends here and has failed.
func require(
    _ condition: Bool,
    _ message: StaticString = "require(_:) does not hold",
    fileID: StaticString = #fileID,
    line: UInt32 = #line
) {
    if !condition { report(message.description, true, fileID, line) }
}

/// Gives what an optional holds; if it is nil, the test ends here and has failed.
func require<Value>(_ optional: Value?, fileID: StaticString = #fileID, line: UInt32 = #line) -> Value {
    if let optional { return optional }
    report("require(_:) is nil", true, fileID, line)
    fatalError()
}

/// Ends the test, which then counts as skipped.
func skip(_ reason: String) -> Never {
    var reason = reason
    reason.append("\0")
    reason.withUTF8 { bytes -> Never in
        bytes.withMemoryRebound(to: CChar.self) { microvm_skip($0.baseAddress) }
    }
}

private func compare<Value: CustomStringConvertible>(
    _ check: StaticString,
    _ left: Value,
    _ relation: StaticString,
    _ right: Value,
    _ holds: Bool,
    _ isLast: Bool,
    _ fileID: StaticString,
    _ line: UInt32
) {
    if holds { return }
    let values = "\(left.description) \(relation.description) \(right.description)"
    report("\(check.description): \(values)", isLast, fileID, line)
}

private func report(_ message: String, _ isLast: Bool, _ fileID: StaticString, _ line: UInt32) {
    var message = message
    message.withUTF8 { bytes in
        bytes.withMemoryRebound(to: CChar.self) { message in
            fileID.withUTF8Buffer { file in
                file.withMemoryRebound(to: CChar.self) { file in
                    microvm_test_report(
                        file.baseAddress,
                        file.count,
                        line,
                        message.baseAddress,
                        message.count,
                        isLast
                    )
                }
            }
        }
    }
}
