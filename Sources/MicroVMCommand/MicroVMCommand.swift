import ArgumentParser

/// The command `microvm`.
struct MicroVMCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "microvm",
        abstract: "Run native code in micro-VMs.",
        discussion: """
            A module is an ELF shared object for x86-64 without dependencies; its exported functions can be called, \
            each run in a virtual machine of its own, without an operating system.

            EXAMPLES
              microvm doctor                          can this machine run guests?
              microvm inspect plugin.so               what is in this module?
              microvm run plugin.so add i64:2 i64:3   call a function
              microvm run inflate.so gunzip file:a.gz --returns bytes > a
              microvm test plugin_tests.so            run the tests in this module
              microvm serve                           run calls for others (see microvm serve --help)

            Shell completions: microvm --generate-completion-script bash (or zsh, or fish).
            """,
        subcommands: [RunCommand.self, TestCommand.self, InspectCommand.self, DoctorCommand.self],
        groupedSubcommands: serverCommands
    )

    #if Server
    private static let serverCommands = [
        CommandGroup(
            name: "Server",
            subcommands: [
                ServeCommand.self, UploadCommand.self, ModulesCommand.self, StartCommand.self, PSCommand.self,
                TopCommand.self, LogsCommand.self, InspectCallCommand.self, StopCommand.self, ContinueCommand.self,
                KillCommand.self, WaitCommand.self,
            ]
        )
    ]
    #else
    private static let serverCommands: [CommandGroup] = []
    #endif
}
