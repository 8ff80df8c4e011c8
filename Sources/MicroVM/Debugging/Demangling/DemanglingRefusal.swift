/// Why a name has no demangled form: it is not a mangled one, is of a kind that is not understood, or exceeds a limit.
struct DemanglingRefusal: Error {}
