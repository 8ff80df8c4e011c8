import Glibc
import SystemPackage

/// Modules made by the tools that are installed: by LLVM's linker, and by GNU's where it is there. None where there is
/// no compiler.
///
/// Between them they have functions, data, weak and strong imports, initialisers, and thread-local variables of every
/// model that a shared object can have.
func realModules() -> [(name: String, bytes: [UInt8])] { modulesMadeOnce }

private let modulesMadeOnce: [(name: String, bytes: [UInt8])] = {
    var template = Array("/tmp/microvm-modules-XXXXXX".utf8CString)
    // A zero-terminated array of the required form, which outlives the call.
    guard unsafe mkdtemp(&template) != nil else { return [] }
    let folder = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    defer { _ = run("rm -rf \(folder)") }
    guard
        let file = try? FileDescriptor.open(
            FilePath("\(folder)/guest.c"),
            .writeOnly,
            options: .create,
            permissions: [.ownerReadWrite]
        )
    else { return [] }
    _ = try? file.closeAfter { try file.writeAll(source.utf8) }

    let compile = "cd \(folder) && clang -target x86_64-unknown-none-elf -ffreestanding -nostdlib -fPIC -O1 -c guest.c"
    let builds = [
        ("lld", "\(compile) -o a.o && ld.lld -shared a.o -o lld.so"),
        ("lld-initial-exec", "\(compile) -ftls-model=initial-exec -o b.o && ld.lld -shared b.o -o lld-initial-exec.so"),
        ("lld-stripped", "cd \(folder) && ld.lld -shared -s --hash-style=gnu -Bsymbolic a.o -o lld-stripped.so"),
        ("lld-based", "cd \(folder) && ld.lld -shared --image-base=0x400000 a.o -o lld-based.so"),
        ("gnu", "cd \(folder) && ld -shared --hash-style=gnu a.o -o gnu.so"),
        ("gnu-now", "cd \(folder) && ld -shared --hash-style=gnu -z now -s a.o -o gnu-now.so"),
    ]
    return builds.compactMap { name, command in
        guard run(command), let bytes = try? contents("\(folder)/\(name).so") else { return nil }
        return (name, bytes)
    }
}()

private func contents(_ path: String) throws -> [UInt8] {
    let file = try FileDescriptor.open(FilePath(path), .readOnly)
    return try file.closeAfter {
        unsafe try [UInt8](unsafeUninitializedCapacity: 1 << 20) { buffer, count in
            // The buffer is what the read is bounded by, and `count` what it has written.
            count = unsafe try file.read(into: UnsafeMutableRawBufferPointer(buffer))
        }
    }
}

private func run(_ command: String) -> Bool {
    // `system` only reads the command.
    unsafe system("{ \(command) ; } 2>/dev/null") == 0
}

private let source = """
    extern int imported(int);
    __attribute__((weak)) extern void maybe(void);
    __attribute__((weak)) extern int maybe_variable;
    _Thread_local int counter = 7;
    static _Thread_local int hidden_counter = 5;
    static _Thread_local long scratch[20];
    _Thread_local char aligned_byte __attribute__((aligned(64)));
    int table[4] = {1, 2, 3, 4};
    int *pointers[2] = {&table[0], &table[2]};
    const char *const names[] = {"a", "b"};
    int zeros[2000];
    int *weak_address = &maybe_variable;
    static int helper(int x) { return x * counter; }
    int (*local_function)(int) = helper;
    int (*imported_function)(int) = imported;
    __attribute__((constructor)) static void first(void) { table[0] = imported(9); }
    __attribute__((visibility("hidden"))) int not_exported(int a) { return a + hidden_counter++; }
    __attribute__((noinline)) int add(int a, int b) { return a + b; }
    int sum(int a, int b) {
        if (maybe) maybe();
        scratch[a & 15] = b;
        hidden_counter += (int)scratch[b & 15];
        return imported(a + b) + counter + *pointers[1] + aligned_byte + not_exported(zeros[a & 1023]);
    }

    """
