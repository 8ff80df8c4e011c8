import MicroVM
import MicroVMTesting
import Morse
import Testing

/// The guest's own tests, each of them a case of this one.
@Test(.requiresKVM, arguments: GuestTests(".build/guests/morse_tests.so"))
func guest(_ test: GuestTest) async throws { try await test.run() }

@Test(.requiresKVM)
func `a text is encoded`() async throws {
    let morse = try await Morse(GuestModule(contentsOf: ".build/guests/morse.so"))
    #expect(try await morse.encode("Hello") == ".... . .-.. .-.. ---")
}
