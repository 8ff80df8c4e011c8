// Tests in Embedded Swift, with the checks of runtime/microvm_test.swift. Some fail, which is what they are for.

import MicroVMGuest

@c public func test_strings() -> Int32 {
    test {
        checkEqual("a" + "b", "ab")
        checkEqual("naïve".count, 5)
        checkEqual("ÅNGSTRÖM".lowercased(), "ångström")
        check("abc" < "abd")
    }
}

@c public func test_collections() -> Int32 {
    test {
        checkEqual([3, 1, 2].sorted().map { $0 * 2 }.reduce(0, +), 12)
        var counts: [String: Int] = [:]
        for word in "a b a c a".split(separator: " ") { counts[String(word), default: 0] += 1 }
        checkEqual(require(counts["a"]), 3)
        check(counts["d"] == nil)
    }
}

@c public func test_fails_checks() -> Int32 {
    test {
        checkEqual(1 + 1, 3)
        checkEqual("left", "right")
        check(Int("12x") != nil, "a number was expected")
        checkNotEqual(2, 1 + 1)
        checkLess(3, 3)
        checkLessOrEqual("b", "a")
        checkNear(1.0, 1.5, 0.25)
        checkNotEqual(1, 2)
        checkLess(-1, 0)
        checkLessOrEqual(3, 3)
        checkNear(1.0, 1.5, 0.5)
    }
}

@c public func test_fails_a_required_equality() -> Int32 {
    test {
        requireEqual(1, 1)
        requireEqual([1].count, 2)
        checkEqual(1, 2)
    }
}

@c public func test_fails_a_requirement() -> Int32 {
    test {
        let missing: [Int: Int] = [:]
        checkEqual(require(missing[1]), 1)
    }
}

@c public func test_traps() -> Int32 {
    test {
        let values = [1, 2, 3]
        var index = 0
        while index >= 0 { index += values[index] }
    }
}

@c public func test_skips() -> Int32 {
    test { skip("for the time being") }
}
