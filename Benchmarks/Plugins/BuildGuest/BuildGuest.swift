import Foundation
import PackagePlugin

/// Compiles `Guest/workload.c` to a guest module, and hands it to the target as a resource.
///
/// The raw loops and the library load this one file, so both run the same machine code.
@main
struct BuildGuest: BuildToolPlugin {
    func createBuildCommands(context: PluginContext, target: any Target) throws -> [Command] {
        let source = context.package.directoryURL.appending(path: "Guest/workload.c")
        let object = context.pluginWorkDirectoryURL.appending(path: "workload.o")
        let module = context.pluginWorkDirectoryURL.appending(path: "workload.so")
        // One command, because an intermediate file named as an output would become a resource too.
        let script = """
            "$1" -target x86_64-unknown-none-elf -ffreestanding -fPIC -O2 -fno-stack-protector -c "$3" -o "$4" &&
            "$2" -shared -Bsymbolic --gc-sections --hash-style=sysv -z max-page-size=4096 "$4" -o "$5"
            """
        return [
            .buildCommand(
                displayName: "Building the benchmarks' guest module",
                executable: URL(filePath: "/bin/sh"),
                arguments: [
                    "-c", script, "sh",
                    try context.tool(named: "clang").url.path, try context.tool(named: "ld.lld").url.path,
                    source.path, object.path, module.path,
                ],
                inputFiles: [source],
                outputFiles: [module]
            )
        ]
    }
}
