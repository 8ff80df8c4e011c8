import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// Modules that come from paths.
@Suite struct GuestModuleFileTests {
    /// Runs with the path of a file that does not exist yet.
    private func withPath(_ body: (FilePath) throws -> Void) throws {
        var template = Array("/tmp/microvm-file-XXXXXX".utf8CString)
        // A zero-terminated array of the required form, which outlives the call.
        try #require(unsafe mkdtemp(&template) != nil)
        let folder = FilePath(String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self))
        let path = folder.appending("guest.so")
        defer {
            // Strings are valid for a call's duration.
            _ = unsafe unlink(path.string)
            _ = unsafe rmdir(folder.string)
        }
        try body(path)
    }

    private func error(_ path: FilePath) throws -> SandboxError {
        try #require(throws: SandboxError.self) { try GuestModule(contentsOf: path) }
    }

    @Test func `a file is read and named`() throws {
        try withPath { path in
            let bytes = ELFBuilder().build()
            let file = try FileDescriptor.open(path, .writeOnly, options: .create, permissions: .ownerReadWrite)
            try file.closeAfter { _ = try file.writeAll(bytes) }
            let module = try GuestModule(contentsOf: path)
            #expect(module.name == "guest.so" && module.bytes == bytes)
        }
    }

    @Test func `a file that is not there is an error of the system`() throws {
        try withPath { path in
            let error = try error(path)
            #expect(error.code == .systemCallFailed && error.underlyingError as? Errno == .noSuchFileOrDirectory)
            #expect(error.message.contains("guest.so\" cannot be read"))
        }
    }

    @Test func `a directory is an error of the system`() throws {
        let error = try error("/tmp")
        #expect(error.code == .systemCallFailed && error.underlyingError as? Errno == .isDirectory)
    }

    @Test func `a FIFO nobody writes to is refused at once`() throws {
        try withPath { path in
            // A string is valid for a call's duration.
            try #require(unsafe mkfifo(path.string, 0o600) == 0)
            let error = try error(path)
            #expect(error.code == .invalidModule && error.message.contains("is not a regular file"))
        }
    }

    @Test func `a device is refused`() throws {
        #expect(try error("/dev/zero").message == "The module \"/dev/zero\" is not a regular file.")
    }

    @Test func `an empty file and one that is shorter than it says are no modules`() throws {
        try withPath { path in
            let file = try FileDescriptor.open(path, .writeOnly, options: .create, permissions: .ownerReadWrite)
            try file.close()
            #expect(try error(path).message.contains("it is not an ELF file"))
        }
        // Says it has a page, and reads as nothing or less.
        #expect(try error("/sys/kernel/mm/transparent_hugepage/enabled").code == .invalidModule)
    }

    @Test func `a file that is too large is not read`() throws {
        try withPath { path in
            let file = try FileDescriptor.open(path, .writeOnly, options: .create, permissions: .ownerReadWrite)
            try file.closeAfter { try file.resize(to: 1 << 40) }
            #expect(try error(path).message.contains("more than 1073741824"))
        }
    }
}
