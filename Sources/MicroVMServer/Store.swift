#if Server
import FoundationEssentials
import GRDB
import MicroVMSupervisor
import Synchronization
import SystemPackage

/// What outlives the server: uploaded modules, and records of calls; in SQLite, with a write-ahead log.
final class Store: CallRecorder {
    /// A module as it was uploaded.
    struct StoredModule {
        var name: String
        var bytes: [UInt8]
        var options: API.ModuleOptions
    }

    private enum Record: Sendable {
        case accepted(CallStatus)
        case ended(CallStatus)
    }

    private let database: any DatabaseWriter
    private let recordedCalls: Int
    /// What has not been written yet. Bounded, so that a slow disk costs records and not memory.
    private let pending = Mutex<[Record]>([])
    private static let maximumPending = 100_000
    private let (signals, signal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
    /// The number of the next call: behind all there are records of.
    let nextCall: CallID
    /// How many calls were under way when the last server ended.
    let lostCalls: Int

    /// - Parameter directory: where the file is; in memory unless given.
    init(directory: FilePath?, recordedCalls: Int) throws {
        self.recordedCalls = recordedCalls
        if let directory {
            var configuration = Configuration()
            configuration.prepareDatabase { database in
                // Killed processes lose nothing by it, only machines that lose their power do.
                try database.execute(sql: "PRAGMA synchronous = NORMAL")
            }
            let path = directory.appending("microvm.sqlite").string
            database = try DatabasePool(path: path, configuration: configuration)
        } else {
            database = try DatabaseQueue()
        }
        try Self.migrator.migrate(database)
        (nextCall, lostCalls) = try database.write { database in
            let lost = try Row.fetchAll(database, sql: "SELECT id, document FROM call WHERE ended IS NULL")
            for row in lost {
                let id: Int64 = row["id"]
                let document: Data = row["document"]
                try database.execute(
                    sql: "UPDATE call SET ended = ?, document = ? WHERE id = ?",
                    arguments: [WallTime.now.nanoseconds, Self.lost(document), id]
                )
            }
            let last = try Int64.fetchOne(database, sql: "SELECT value FROM counter WHERE name = 'call'") ?? 0
            let highest = try Int64.fetchOne(database, sql: "SELECT max(id) FROM call") ?? 0
            return (CallID(rawValue: UInt64(max(last, highest, 0)) + 1), lost.count)
        }
    }

    private static var migrator: DatabaseMigrator {
        var migrator = DatabaseMigrator()
        migrator.registerMigration("1") { database in
            try database.execute(
                sql: """
                    CREATE TABLE module (name TEXT PRIMARY KEY, bytes BLOB NOT NULL, options BLOB NOT NULL);
                    CREATE TABLE call (
                        id INTEGER PRIMARY KEY, module TEXT NOT NULL, accepted INTEGER NOT NULL, ended INTEGER,
                        document BLOB NOT NULL
                    );
                    CREATE INDEX call_under_way ON call (id) WHERE ended IS NULL;
                    CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
                    """
            )
        }
        return migrator
    }

    /// The record of a call whose server ended under it.
    private static func lost(_ document: Data) -> Data {
        guard var call = try? JSONDecoder().decode(API.Call.self, from: document) else { return document }
        call.state = CallStatus.State.finished.rawValue
        call.outcome = .lost
        call.sample = nil
        return (try? JSONEncoder().encode(call)) ?? document
    }

    // MARK: - Modules

    func modules() throws -> [StoredModule] {
        try database.read { database in
            try Row.fetchAll(database, sql: "SELECT name, bytes, options FROM module ORDER BY name").map { row in
                let bytes: Data = row["bytes"]
                let options: Data = row["options"]
                return StoredModule(
                    name: row["name"],
                    bytes: Array(bytes),
                    options: (try? JSONDecoder().decode(API.ModuleOptions.self, from: options)) ?? API.ModuleOptions()
                )
            }
        }
    }

    func save(_ module: StoredModule) async throws {
        let options = try JSONEncoder().encode(module.options)
        let (name, bytes) = (module.name, Data(module.bytes))
        try await database.write { database in
            try database.execute(
                sql: "INSERT OR REPLACE INTO module (name, bytes, options) VALUES (?, ?, ?)",
                arguments: [name, bytes, options]
            )
        }
    }

    func setPool(of name: String, to size: ClosedRange<Int>) async throws {
        try await database.write { database in
            let sql = "SELECT options FROM module WHERE name = ?"
            guard let data = try Data.fetchOne(database, sql: sql, arguments: [name]) else { return }
            var options = (try? JSONDecoder().decode(API.ModuleOptions.self, from: data)) ?? API.ModuleOptions()
            options.poolMinimum = size.lowerBound
            options.poolMaximum = size.upperBound
            try database.execute(
                sql: "UPDATE module SET options = ? WHERE name = ?",
                arguments: [try JSONEncoder().encode(options), name]
            )
        }
    }

    func removeModule(_ name: String) async throws {
        try await database.write { database in
            try database.execute(sql: "DELETE FROM module WHERE name = ?", arguments: [name])
        }
    }

    // MARK: - Calls

    func accepted(_ call: CallStatus) { add(.accepted(call)) }
    func ended(_ call: CallStatus) { add(.ended(call)) }

    private func add(_ record: Record) {
        pending.withLock { if $0.count < Self.maximumPending { $0.append(record) } }
        signal.yield()
    }

    /// Writes what there is to write, until it is told to end, and then the rest.
    func run() async {
        for await _ in signals {
            // Together with what comes soon: whoever calls in a row is not to have a transaction run beside each call.
            try? await Task.sleep(for: .milliseconds(10))
            await writePending()
        }
        await writePending()
    }

    func end() { signal.finish() }

    private func writePending() async {
        let records = pending.withLock { pending in
            defer { pending = [] }
            return pending
        }
        guard !records.isEmpty else { return }
        // A call that has both begun and ended since is written once.
        var documents: [UInt64: (accepted: CallStatus, ended: CallStatus?)] = [:]
        for record in records {
            switch record {
            case .accepted(let call): documents[call.id.rawValue] = (call, nil)
            case .ended(let call): documents[call.id.rawValue] = (call, call)
            }
        }
        let rows = documents.values.map { accepted, ended -> (call: CallStatus, document: Data) in
            let call = ended ?? accepted
            var document = API.Call(call)
            document.sample = nil
            // What is long is not kept.
            if case .returned(let value?) = call.outcome, value.size > 64 << 10 { document.outcome?.result = nil }
            return (call, Data(document.json))
        }
        let last = documents.keys.max() ?? 0
        let oldest = Int64(last) - Int64(recordedCalls)
        // Where the disk is full, records are lost, and calls go on.
        try? await database.write { database in
            let statement = try database.cachedStatement(
                sql: "INSERT OR REPLACE INTO call (id, module, accepted, ended, document) VALUES (?, ?, ?, ?, ?)"
            )
            for (call, document) in rows {
                try statement.execute(arguments: [
                    Int64(call.id.rawValue), call.module, call.accepted.nanoseconds, call.ended?.nanoseconds, document,
                ])
            }
            try database.execute(
                sql: """
                    INSERT INTO counter (name, value) VALUES ('call', ?)
                    ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)
                    """,
                arguments: [Int64(last)]
            )
            if oldest > 0 {
                try database.execute(
                    sql: "DELETE FROM call WHERE id <= ? AND ended IS NOT NULL",
                    arguments: [oldest]
                )
            }
        }
    }

    func call(_ id: CallID) async throws -> API.Call? {
        guard let id = Int64(exactly: id.rawValue) else { return nil }
        let data = try await database.read { database in
            try Data.fetchOne(database, sql: "SELECT document FROM call WHERE id = ?", arguments: [id])
        }
        return try data.map { try JSONDecoder().decode(API.Call.self, from: $0) }
    }

    /// Calls that are over, the last one first.
    func history(before id: UInt64?, module: String?, limit: Int) async throws -> [API.Call] {
        let before = id.map { Int64(clamping: $0) } ?? .max
        let documents = try await database.read { database in
            try Data.fetchAll(
                database,
                sql: """
                    SELECT document FROM call WHERE ended IS NOT NULL AND id < ? AND (? IS NULL OR module = ?)
                    ORDER BY id DESC LIMIT ?
                    """,
                arguments: [before, module, module, limit]
            )
        }
        let decoder = JSONDecoder()
        return documents.compactMap { try? decoder.decode(API.Call.self, from: $0) }
    }
}

extension CallValue {
    fileprivate var size: Int {
        switch self {
        case .string(let text): text.utf8.count
        case .bytes(let bytes): bytes.count
        default: 8
        }
    }
}
#endif
