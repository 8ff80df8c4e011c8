import Glibc
import SystemPackage
import Testing

/// The real debugger, as users have it.
enum GDB {
    static let isInstalled = (try? Workshop()).map { $0.run("gdb --version > version") } ?? false

    /// Opens a core dump with its module, and carries out commands.
    ///
    /// - Returns: all that it says.
    static func run(_ module: FilePath, _ core: FilePath, _ commands: String...) throws -> String {
        let workshop = try Workshop()
        try workshop.write(Array(commands.map { $0 + "\n" }.joined().utf8), "commands")
        // Without anybody's settings, and without looking for symbols elsewhere.
        let command = "timeout 60 gdb -nx -batch -iex 'set debuginfod enabled off' -x commands '\(module)' '\(core)'"
        // It fails with the last command, which may be meant.
        _ = workshop.run("DEBUGINFOD_URLS= \(command) > output 2>&1")
        return String(decoding: try workshop.read("output"), as: UTF8.self)
    }
}

private let isNeeded = unsafe getenv("CI") != nil

extension Trait where Self == ConditionTrait {
    /// The test asks the real debugger, which has to be there wherever tests run unattended.
    static var requiresGDB: Self {
        .enabled(if: isNeeded || GDB.isInstalled, "This test needs gdb (Debian package gdb).")
    }
}
