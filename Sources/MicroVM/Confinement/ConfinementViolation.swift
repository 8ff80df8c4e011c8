import CShims

/// A system call that a sandbox's thread attempted against its confinement, and that was refused: the underlying error
/// of a ``SandboxError`` with the code ``SandboxError/Code/confinementViolated``.
public struct ConfinementViolation: Error, Hashable, Sendable, CustomStringConvertible {
    /// The number of the system call.
    public let number: Int
    /// Its name, where it is known.
    public let name: String?
    /// The six arguments, as the registers had them.
    public let arguments: [UInt64]
    /// The address of the instruction in the process.
    public let address: UInt64

    /// The calling thread's last one, which is forgotten.
    static func take() -> ConfinementViolation? {
        let violation = shim_violation_take()
        guard violation.has_happened else { return nil }
        let arguments = violation.arguments
        return ConfinementViolation(
            number: Int(violation.system_call),
            // A string that stays where it is for as long as the process lives.
            name: unsafe shim_system_call_name(violation.system_call).map { unsafe String(cString: $0) },
            arguments: [arguments.0, arguments.1, arguments.2, arguments.3, arguments.4, arguments.5],
            address: violation.address
        )
    }

    /// A sentence that names the system call and says what to do.
    public var description: String {
        let values = arguments.map { "0x" + String($0, radix: 16) }.joined(separator: ", ")
        return """
            The guest call was ended because its thread attempted the system call \(name ?? "of an unknown name") \
            (\(number)) with the arguments \(values), which its confinement forbids. A host function that needs it is \
            made asynchronous, or its sandbox with confinesThread = false.
            """
    }
}
