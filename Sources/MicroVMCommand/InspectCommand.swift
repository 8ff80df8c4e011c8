import ArgumentParser
import MicroVM

/// `microvm inspect`.
struct InspectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect",
        abstract: "Show what a module offers and what it needs.",
        discussion: """
            Shows exports, imports (provided by the library, or left to the program that embeds it), segments with \
            their permissions, and what else is in the module. Nothing of it is run, and no KVM is needed. A module \
            that cannot be loaded is refused with the reason.

            EXAMPLES
              microvm inspect plugin.so
              microvm inspect plugin.so --json | jq -r '.exports[].name'

            EXIT STATUS
              0    the module can be loaded
              64   wrong usage
              65   the module is refused, or cannot be read
            """
    )

    @Argument(help: "The module, an ELF shared object.", completion: .file(extensions: ["so"]))
    var module: String

    @Flag(help: "Write one JSON object.")
    var json = false

    /// A module that cannot be loaded.
    private struct Refusal: Encodable {
        var module: String
        var isLoadable = false
        var refusal: String
    }

    func run() throws {
        do throws(CommandFailure) {
            let report = InspectReport(try ModuleFile.load(module))
            if json { try? StandardStream.output.writeJSON(report) } else { StandardStream.output.write(report.text) }
        } catch {
            if json {
                try StandardStream.output.writeJSON(Refusal(module: module, refusal: error.message))
            } else {
                StandardStream.error.write("Error: \(error.message)\n")
            }
            throw error.status.exitCode
        }
    }
}
