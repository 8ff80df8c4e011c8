import ArgumentParser
import Hummingbird
import Logging
import Metrics
import SystemPackage

@main
struct PluginServiceCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "plugin-service",
        abstract: "Serves requests with native code in micro-VMs, each in a sandbox that is as new.",
        discussion: """
            EXAMPLE:
              plugin-service --modules .build/guest-images tag=plugin_tag &
              gzip -c README.md | curl --data-binary @- localhost:8080/inflate
            """
    )

    @Option(help: "The folder with the modules NAME.so; inflate.so serves /inflate.")
    var modules: String

    @Argument(help: "Plugins, as NAME or NAME=MODULE: each serves /plugin/NAME by its function `handle`.")
    var plugins: [String] = []

    @Option(help: "The address to listen at.")
    var hostname = "127.0.0.1"

    @Option(help: "The port to listen at.")
    var port = 8080

    @Option(help: "How many sandboxes of each plugin there may be.")
    var sandboxes = 8

    @Option(help: "How many requests may wait for a sandbox of one plugin; the next one is answered with 503.")
    var maximumWaiters = 64

    @Option(help: "The milliseconds that a request may take in the guest; then it is answered with 504.")
    var timeLimit = 500

    @Option(help: "The MiB of memory that a sandbox may have.")
    var memoryLimit = 64

    @Option(help: "The bytes that a request may have; a larger one is answered with 413.")
    var bodyLimit = 1 << 20

    func run() async throws {
        let metrics = MetricsPage()
        MetricsSystem.bootstrap(metrics)
        var limits = ServiceLimits()
        limits.timeLimit = .milliseconds(timeLimit)
        limits.memoryLimit = UInt64(memoryLimit) << 20
        limits.bodyLimit = bodyLimit
        limits.sandboxes = 0...sandboxes
        limits.maximumWaiters = maximumWaiters
        let folder = FilePath(modules)
        var paths: [String: FilePath] = [:]
        for plugin in plugins {
            let parts = plugin.split(separator: "=", maxSplits: 1)
            guard let name = parts.first, let module = parts.last else {
                throw ValidationError("A plugin is NAME or NAME=MODULE.")
            }
            paths[String(name)] = folder.appending("\(module).so")
        }
        let service = try await PluginService(
            inflate: folder.appending("inflate.so"),
            plugins: paths,
            limits: limits,
            metrics: metrics
        )
        var logger = Logger(label: "plugin-service")
        logger.logLevel = .notice
        let application = service.application(hostname: hostname, port: port, logger: logger)
        try await application.runService()
    }
}
