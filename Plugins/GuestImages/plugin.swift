import Foundation
import PackagePlugin

/// Builds the guest modules before a test target, and tells the target where they are: in a generated source file,
/// `GuestImages.directory`.
@main
struct GuestImages: BuildToolPlugin {
    func createBuildCommands(context: PluginContext, target: any Target) throws -> [Command] {
        let guests = context.package.directoryURL.appending(path: "guest-images")
        let output = context.pluginWorkDirectoryURL.appending(path: "guest-images")
        let generated = context.pluginWorkDirectoryURL.appending(path: "GuestImages.swift")

        let sources = try ["c", "swift", "runtime"].flatMap { folder in
            try FileManager.default.contentsOfDirectory(
                at: guests.appending(path: folder),
                includingPropertiesForKeys: nil,
                options: .skipsHiddenFiles
            )
        }
        .sorted { $0.path < $1.path }

        // The modules are no declared outputs: SwiftPM would make resources of them and copy them.
        return [
            .buildCommand(
                displayName: "Building guest modules for \(target.name)",
                executable: guests.appending(path: "build"),
                arguments: ["--output", output.path, "--swift-source", generated.path],
                environment: ["SWIFTC": try context.tool(named: "swiftc").url.path],
                inputFiles: sources + [guests.appending(path: "build")],
                outputFiles: [generated]
            )
        ]
    }
}
