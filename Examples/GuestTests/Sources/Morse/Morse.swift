public import MicroVM

/// Morse code, by a guest.
public struct Morse: Sendable {
    private let sandbox: Sandbox

    /// - Parameter module: the guest `morse.so`.
    public init(_ module: GuestModule) async throws { sandbox = try await Sandbox(module) }

    /// The code of a text, its letters separated by spaces and its words by slashes.
    public func encode(_ text: String) async throws -> String {
        try await sandbox.call("morse", text, timeLimit: .milliseconds(100))
    }
}
