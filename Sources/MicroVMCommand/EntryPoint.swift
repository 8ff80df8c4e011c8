import ArgumentParser
import CShims
import Glibc

/// Where the process begins. Commands run on another thread, so that this one is free to take signals.
@main
enum EntryPoint {
    static func main() {
        // Writing to a pipe that nobody reads is to be an error, which the writer then deals with.
        _ = signal(SIGPIPE, SIG_IGN)
        // With the thousand sandboxes that a server may have, each growth of a heap would take longer than ten kills.
        shim_heaps_begin_large()
        // Before there is any other thread, so that all of them inherit it.
        CommandSignals.shared.block()
        // Detached from the main actor, whose thread is this one.
        Task.detached {
            do {
                var command = try MicroVMCommand.parseAsRoot()
                if var asynchronous = command as? any AsyncParsableCommand {
                    try await asynchronous.run()
                } else {
                    try command.run()
                }
                MicroVMCommand.exit(withError: nil)
            } catch {
                MicroVMCommand.exit(withError: error)
            }
        }
        CommandSignals.shared.serve()
    }
}
