import Glibc
import Testing

@testable import MicroVM

/// Whatever ends a call below a host function, every host function on the way out is unwound as Swift unwinds.
///
/// The guest goes down to level 0 through a host function at each level, and there does what it is told to.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct UnwindingTests {
    /// What happens at the bottom: the `deed` of nested.c.
    enum Deed: Int, CaseIterable {
        case killInGuest = 1
        case fault = 2
        case overflowStack = 3
        case abort = 4
        /// In the host function at the very bottom.
        case throwInHostFunction = 5
        case killInHostFunction = 6

        /// What the guest is told.
        var number: Int { self == .killInHostFunction ? 5 : rawValue }

        func matches(_ end: CallEnd) -> Bool {
            switch self {
            case .killInGuest, .killInHostFunction: end.code == .killed
            case .fault: end.sandboxError?.fault?.kind == .memoryAccess
            case .overflowStack: end.sandboxError?.fault?.kind == .stackOverflow
            case .abort: end.sandboxError?.fault?.message == "given up"
            case .throwInHostFunction: end.error as? Own == Own(level: -1)
            }
        }
    }

    /// What the host functions do with a failure below them.
    enum Handling: CaseIterable { case passOn, swallow, replace, tryAgain }

    struct Own: Error, Equatable { var level: Int }

    /// Leaves a note when it goes.
    final class Guardian: Sendable {
        let level: Int
        let notes: Recorder<String>
        init(_ level: Int, _ notes: Recorder<String>) { (self.level, self.notes) = (level, notes) }
        deinit { notes.append("gone \(level)") }
    }

    /// A lock that is held while a host function is at work.
    final class Lock: Sendable {
        private let isHeld = Locked(false)
        func lock() {
            #expect(
                isHeld.withLock { held in
                    defer { held = true }; return !held
                }
            )
        }
        func unlock() {
            #expect(
                isHeld.withLock { held in
                    defer { held = false }; return held
                }
            )
        }
        var isFree: Bool { isHeld.withLock { !$0 } }
    }

    /// What one sandbox's host functions share.
    private struct Scene {
        let notes = Recorder<String>()
        let failures = Recorder<Int>()
        let locks = (0..<8).map { _ in Lock() }
        let killSwitch = Shared<KillSwitch>(nil)

        func enter(_ handling: Handling, isAsynchronous: Bool) -> HostFunction {
            if isAsynchronous {
                return HostFunction("host_enter") {
                    (context: HostCallContext, level: Int, deed: Int, place: UInt64) async throws -> Int in
                    locks[level].lock()
                    defer {
                        notes.append("left \(level)")
                        locks[level].unlock()
                    }
                    let guardian = Guardian(level, notes)
                    defer { withExtendedLifetime(guardian) {} }
                    do {
                        return try await context.call("go_down", level, deed, place)
                    } catch {
                        failures.append(level)
                        if handling == .tryAgain { return try await context.call("go_down", 0, 0, place) }
                        return try handle(error, handling, level)
                    }
                }
            }
            return HostFunction("host_enter") {
                (context: HostCallContext, level: Int, deed: Int, place: UInt64) throws -> Int in
                locks[level].lock()
                defer {
                    notes.append("left \(level)")
                    locks[level].unlock()
                }
                let guardian = Guardian(level, notes)
                defer { withExtendedLifetime(guardian) {} }
                do {
                    return try context.call("go_down", level, deed, place)
                } catch {
                    failures.append(level)
                    if handling == .tryAgain { return try context.call("go_down", 0, 0, place) }
                    return try handle(error, handling, level)
                }
            }
        }

        private func handle(_ error: any Error, _ handling: Handling, _ level: Int) throws -> Int {
            switch handling {
            case .passOn, .tryAgain: throw error
            case .swallow: return 1000
            case .replace: throw Own(level: level)
            }
        }

        func mark(_ deed: Deed, isAsynchronous: Bool) -> HostFunction {
            @Sendable func act() throws {
                if deed == .killInHostFunction { #expect(killSwitch.block().answer() == .success(.pending)) }
                if deed == .throwInHostFunction { throw Own(level: -1) }
            }
            if isAsynchronous { return HostFunction("host_mark") { (_: Int) async throws -> Void in try act() } }
            return HostFunction("host_mark") { (_: Int) throws -> Void in try act() }
        }
    }

    @Test(arguments: Deed.allCases, Handling.allCases)
    func `every host frame is unwound once, innermost first, and no guest code runs any more`(
        _ deed: Deed,
        _ handling: Handling
    ) async throws {
        for isAsynchronous in [false, true] {
            for levels in [1, 4] {
                let scene = Scene()
                let functions = nestedFunctions(
                    scene.enter(handling, isAsynchronous: isAsynchronous),
                    scene.mark(deed, isAsynchronous: isAsynchronous)
                )
                let sandbox = try await Guest.nested.sandbox(functions)
                let traces = try await Traces(in: sandbox)
                let call: GuestCall<Int> = try sandbox.start("go_down", levels, deed.number, traces.address)
                scene.killSwitch.value = call.killSwitch
                if deed == .killInGuest {
                    await waitUntil { traces.isAtWork }
                    #expect(await onThread { call.killSwitch.answer() } == .success(.signalled))
                }
                let end = await CallEnd(call)
                #expect(deed.matches(end), "\(end)")
                // Each level sees the failure below it, leaves, and lets go of what it holds.
                #expect(scene.failures.all == Array(0..<levels))
                #expect(scene.notes.all.filter { $0.hasPrefix("left") } == (0..<levels).map { "left \($0)" })
                #expect(scene.notes.all.filter { $0.hasPrefix("gone") } == (0..<levels).map { "gone \($0)" })
                #expect(scene.locks.allSatisfy { $0.isFree })
                // Guest code began at each level, and never went on at any.
                #expect(traces.before == UInt64(levels) + 1 && traces.after == 0)
                #expect(await isPoisoned(sandbox))
            }
        }
    }

    @Test func `whoever throws first, at any level, is what the outermost call reports`() async throws {
        for thrower in 0..<4 {
            let left = Recorder<Int>()
            let enter = HostFunction("host_enter") {
                (context: HostCallContext, level: Int, deed: Int, place: UInt64) throws -> Int in
                defer { left.append(level) }
                if level == thrower { throw Own(level: level) }
                do {
                    return try context.call("go_down", level, deed, place)
                } catch {
                    #expect(error as? Own == Own(level: thrower))
                    throw Own(level: 10 + level)
                }
            }
            let sandbox = try await Guest.nested.sandbox(nestedFunctions(enter))
            let traces = try await Traces(in: sandbox)
            let end = await CallEnd { let _: Int = try await sandbox.call("go_down", 4, 0, traces.address) }
            #expect(end.error as? Own == Own(level: thrower))
            #expect(left.all == Array(thrower..<4) && traces.after == 0)
            #expect(await isPoisoned(sandbox))
        }
    }

    @Test func `a kill at any level ends all of them`() async throws {
        for killer in 0..<4 {
            let left = Recorder<Int>()
            let killSwitch = Shared<KillSwitch>(nil)
            let enter = HostFunction("host_enter") {
                (context: HostCallContext, level: Int, deed: Int, place: UInt64) throws -> Int in
                defer { left.append(level) }
                if level == killer {
                    #expect(killSwitch.block().answer() == .success(.pending))
                    #expect(context.isCancelled)
                }
                // Where it was killed, this throws before any guest code.
                return try context.call("go_down", level, deed, place)
            }
            let sandbox = try await Guest.nested.sandbox(nestedFunctions(enter))
            let traces = try await Traces(in: sandbox)
            let call: GuestCall<Int> = try sandbox.start("go_down", 4, 0, traces.address)
            killSwitch.value = call.killSwitch
            let end = await CallEnd(call)
            #expect(end.code == .killed)
            #expect(end.sandboxError?.interruption?.callDepth == 4 - killer)
            #expect(left.all == Array(killer..<4))
            #expect(traces.before == UInt64(4 - killer) && traces.after == 0)
        }
    }

    @Test func `a kill while the way out is under way changes nothing about the first cause`() async throws {
        let killSwitch = Shared<KillSwitch>(nil)
        let answers = Recorder<KillAnswer>()
        let enter = HostFunction("host_enter") {
            (context: HostCallContext, level: Int, deed: Int, place: UInt64) throws -> Int in
            do {
                return try context.call("go_down", level, deed, place)
            } catch {
                answers.append(killSwitch.block().answer())
                throw error
            }
        }
        let sandbox = try await Guest.nested.sandbox(nestedFunctions(enter))
        let traces = try await Traces(in: sandbox)
        let call: GuestCall<Int> = try sandbox.start("go_down", 2, Deed.fault.number, traces.address)
        killSwitch.value = call.killSwitch
        #expect(await CallEnd(call).sandboxError?.fault?.kind == .memoryAccess)
        #expect(answers.all == [.success(.pending), .failure(.notTerminable)])
    }

    @Test func `tasks of an asynchronous host function are cancelled and awaited on the way out`() async throws {
        let notes = Recorder<String>()
        let waiting = Counter()
        let enter = HostFunction("host_enter") {
            (context: HostCallContext, level: Int, deed: Int, place: UInt64) async throws -> Int in
            try await withThrowingTaskGroup(of: Int.self) { group in
                group.addTask {
                    waiting.next()
                    defer { notes.append("cancelled \(level)") }
                    try await Task.sleep(for: .seconds(100_000))
                    return 0
                }
                group.addTask { try await context.call("go_down", level, deed, place) }
                return try await group.next() ?? 0
            }
        }
        let sandbox = try await Guest.nested.sandbox(nestedFunctions(enter))
        let traces = try await Traces(in: sandbox)
        let call: GuestCall<Int> = try sandbox.start("go_down", 3, Deed.killInGuest.number, traces.address)
        await waitUntil { traces.isAtWork && waiting.value == 3 }
        #expect(await onThread { call.killSwitch.answer() } == .success(.signalled))
        #expect(await CallEnd(call).code == .killed)
        #expect(Set(notes.all) == ["cancelled 0", "cancelled 1", "cancelled 2"] && notes.count == 3)
        #expect(traces.after == 0)
    }
}
