import Glibc

/// Where the tests run, as far as it decides how much they can do in a reasonable time.
enum Surroundings {
    /// Under an emulated processor (see scripts/run-on-kvm-amd), where everything takes about twenty times as long.
    static let isEmulated = isSet("MICROVM_EMULATED")
    /// Built with a sanitizer, as whoever runs the tests says: the code itself cannot tell.
    static let isSanitized = isSet("MICROVM_SANITIZED")
    /// Whether the tests that load the machine have it for themselves and shall do all they can (see scripts/test).
    /// Otherwise they do a little of it, so as not to keep all the other tests from getting on.
    static let isStress = isSet("MICROVM_STRESS")

    /// So many repetitions, or fewer where each takes much longer or there is not the time.
    static func scaled(_ count: Int) -> Int {
        isEmulated || !isStress ? max(2, count / 20) : isSanitized ? max(2, count / 5) : count
    }

    /// So many microseconds, or more where everything takes as much longer.
    static func paced(_ microseconds: Int) -> Int { isEmulated ? 20 * microseconds : microseconds }

    private static func isSet(_ name: String) -> Bool {
        // The tests set no variables, so what is found stays.
        guard let value = unsafe getenv(name) else { return false }
        return unsafe value.pointee != 0
    }
}
