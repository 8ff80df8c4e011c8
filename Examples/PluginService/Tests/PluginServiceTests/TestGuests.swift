import Foundation
import Metrics
import MicroVM
import SystemPackage
import Testing

@testable import PluginService

/// The guests that the tests use, built when the first of them is asked for.
enum TestGuests {
    static let folder: FilePath = {
        // Tests/PluginServiceTests/TestGuests.swift of Examples/PluginService.
        var root = FilePath(#filePath)
        for _ in 0..<5 { root.removeLastComponent() }
        let build = Process()
        build.executableURL = URL(fileURLWithPath: root.appending("guest-images/build").string)
        build.arguments = ["inflate", "plugin_tag", "plugin_hostile"]
        do {
            try build.run()
            build.waitUntilExit()
        } catch {
            Issue.record(error)
        }
        return root.appending(".build/guest-images")
    }()

    static func path(_ name: String) -> FilePath { folder.appending("\(name).so") }
}

/// The metrics of the process, which can be set up once.
let metricsPage: MetricsPage = {
    let page = MetricsPage()
    MetricsSystem.bootstrap(page)
    return page
}()

extension Trait where Self == ConditionTrait {
    /// The test runs guests: without a usable KVM it is skipped, and says why.
    static var requiresKVM: Self {
        let reason: String?
        do {
            _ = try HostSupport()
            reason = nil
        } catch {
            reason = "\(error)"
        }
        return .enabled(if: reason == nil, "\(reason ?? "")")
    }
}

/// Waits until something has happened elsewhere; only the test's own time limit ends it.
func waitUntil(_ condition: () -> Bool) async {
    while !condition() { try? await Task.sleep(for: .milliseconds(2)) }
}
