import Testing

@testable import MicroVM

/// Modules made by linkers: the guests of guest-images, and one that has everything a module can have, linked in every
/// way that LLVM's linker and GNU's know, where those are installed.
func realModules() -> [(name: String, bytes: [UInt8])] { linkedModules() + guestModules }

/// The module that has everything, linked in different ways: functions, data, weak and strong imports, initialisers,
/// and thread-local variables of every model that a shared object can have. None where there is no compiler.
func linkedModules() -> [(name: String, bytes: [UInt8])] { modulesMadeOnce }

/// The guests that differ in how they are linked and in what they have, of those that are small enough to be cut off at
/// every byte.
private let guestModules: [(name: String, bytes: [UInt8])] = {
    let guests: [Guest] = [.initializers, .threadLocal, .hostCalls]
    return guests.compactMap { guest in (try? contents(of: guest.path)).map { (guest.rawValue, $0) } }
}()

private let modulesMadeOnce: [(name: String, bytes: [UInt8])] = {
    guard let workshop = try? Workshop(), (try? workshop.write(Array(source.utf8), "guest.c")) != nil else { return [] }
    let compile = "clang -target x86_64-unknown-none-elf -ffreestanding -nostdlib -fPIC -O1 -c guest.c"
    let builds = [
        ("lld", "\(compile) -o a.o && ld.lld -shared a.o -o lld.so"),
        ("lld-initial-exec", "\(compile) -ftls-model=initial-exec -o b.o && ld.lld -shared b.o -o lld-initial-exec.so"),
        ("lld-stripped", "ld.lld -shared -s --hash-style=gnu -Bsymbolic a.o -o lld-stripped.so"),
        ("lld-based", "ld.lld -shared --image-base=0x400000 a.o -o lld-based.so"),
        ("gnu", "ld -shared --hash-style=gnu a.o -o gnu.so"),
        ("gnu-now", "ld -shared --hash-style=gnu -z now -s a.o -o gnu-now.so"),
    ]
    return builds.compactMap { name, command in
        guard workshop.run(command), let bytes = try? workshop.read("\(name).so") else { return nil }
        return (name, bytes)
    }
}()

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
