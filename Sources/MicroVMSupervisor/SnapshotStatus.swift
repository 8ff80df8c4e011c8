import MicroVM

/// The number by which a supervisor knows a snapshot.
public struct SnapshotID: RawRepresentable, Sendable, Hashable, Comparable, CustomStringConvertible {
    /// The number, from 1 on.
    public var rawValue: UInt64

    /// Makes the number of a snapshot.
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Earlier snapshots come first.
    public static func < (left: SnapshotID, right: SnapshotID) -> Bool { left.rawValue < right.rawValue }

    /// The number in decimal.
    public var description: String { String(rawValue) }
}

/// A snapshot that a supervisor keeps.
public struct SnapshotStatus: Sendable, Hashable {
    /// Its number.
    public var id: SnapshotID
    /// The call it was taken of.
    public var call: CallID
    /// The call's module.
    public var module: String
    /// The call's function.
    public var function: String
    /// When it was taken.
    public var taken: WallTime
    /// How many pages of 4 KiB are not zero, those included that it shares with others.
    public var pageCount: Int
}

/// A snapshot with all that a call needs which goes on from it. The supervisor's own.
struct KeptSnapshot {
    let id: SnapshotID
    let call: CallID
    let request: CallRequest
    let module: RegisteredModule
    let snapshot: Snapshot
    let taken = WallTime.now

    var status: SnapshotStatus {
        SnapshotStatus(
            id: id,
            call: call,
            module: request.module,
            function: request.function,
            taken: taken,
            pageCount: snapshot.pageCount
        )
    }
}
