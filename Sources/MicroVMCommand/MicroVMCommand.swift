import ArgumentParser

@main
struct MicroVMCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(commandName: "microvm")
}
