// swift-tools-version: 6.2
import PackageDescription

let settings: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    .strictMemorySafety(),
    // Where tests can hold a thread still between two steps of the interruption protocol.
    .define("SYNCHRONIZATION_POINTS", .when(configuration: .debug)),
]

let package = Package(
    name: "swift-microvm",
    products: [
        .library(name: "MicroVM", targets: ["MicroVM"]),
        .library(name: "LinuxKVM", targets: ["LinuxKVM"]),
        .library(name: "MicroVMTesting", targets: ["MicroVMTesting"]),
        .library(name: "MicroVMSupervisor", targets: ["MicroVMSupervisor"]),
        .executable(name: "microvm", targets: ["MicroVMCommand"]),
    ],
    traits: [
        .trait(name: "Logging", description: "Sandboxes and pools log through swift-log, and guests do."),
        .trait(name: "Metrics", description: "Sandboxes and pools report what they do through swift-metrics."),
        .trait(name: "Tracing", description: "Calls are spans of swift-distributed-tracing."),
        .trait(name: "ServiceLifecycle", description: "Pools and supervisors are services of swift-service-lifecycle."),
        .trait(
            name: "Confinement",
            description: "The process can be confined, by libcap and libseccomp of the system."
        ),
        .trait(name: "Server", description: "The command microvm serves supervised calls by HTTP, and talks to it."),
        .default(enabledTraits: ["Logging", "Metrics", "Tracing", "Confinement", "Server"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
        .package(url: "https://github.com/apple/swift-system", from: "1.4.0"),
        // Each is fetched and built for those who switch on the trait of its name.
        .package(url: "https://github.com/apple/swift-log", from: "1.6.0"),
        .package(url: "https://github.com/apple/swift-metrics", from: "2.7.0"),
        .package(url: "https://github.com/apple/swift-distributed-tracing", from: "1.3.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.6.0"),
        // All of these for the trait Server.
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.20.0", traits: []),
        .package(url: "https://github.com/apple/swift-http-types", from: "1.4.0", traits: []),
        .package(url: "https://github.com/apple/swift-nio", from: "2.86.0"),
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.5.0"),
        // For the tests alone.
        .package(url: "https://github.com/jpsim/Yams", from: "6.0.0"),
    ],
    targets: [
        .target(name: "CShims", path: "CShims"),
        // Without these headers building says which package to install, or to do without the trait.
        .systemLibrary(
            name: "CSeccomp",
            path: "Libraries/CSeccomp",
            pkgConfig: "libseccomp",
            providers: [.apt(["libseccomp-dev"])]
        ),
        .systemLibrary(
            name: "CCapabilities",
            path: "Libraries/CCapabilities",
            pkgConfig: "libcap",
            providers: [.apt(["libcap-dev"])]
        ),
        .target(
            name: "LinuxKVM",
            dependencies: ["CShims", .product(name: "SystemPackage", package: "swift-system")],
            swiftSettings: settings
        ),
        .target(
            name: "MicroVM",
            dependencies: [
                "LinuxKVM",
                "CShims",
                .target(name: "CSeccomp", condition: .when(traits: ["Confinement"])),
                .target(name: "CCapabilities", condition: .when(traits: ["Confinement"])),
                .product(name: "SystemPackage", package: "swift-system"),
                .product(name: "Logging", package: "swift-log", condition: .when(traits: ["Logging"])),
                .product(name: "Metrics", package: "swift-metrics", condition: .when(traits: ["Metrics"])),
                .product(name: "Tracing", package: "swift-distributed-tracing", condition: .when(traits: ["Tracing"])),
                .product(
                    name: "ServiceLifecycle",
                    package: "swift-service-lifecycle",
                    condition: .when(traits: ["ServiceLifecycle"])
                ),
            ],
            swiftSettings: settings
        ),
        // What the command and the library for Swift Testing have in common.
        .target(name: "GuestTestRunner", dependencies: ["MicroVM"], swiftSettings: settings),
        // Imports Testing, which comes with the toolchain: for test targets.
        .target(
            name: "MicroVMTesting",
            dependencies: [
                "MicroVM", "GuestTestRunner", .product(name: "SystemPackage", package: "swift-system"),
            ],
            swiftSettings: settings
        ),
        .target(
            name: "MicroVMSupervisor",
            dependencies: [
                "MicroVM",
                .product(name: "SystemPackage", package: "swift-system"),
                .product(name: "Logging", package: "swift-log", condition: .when(traits: ["Logging"])),
                .product(
                    name: "ServiceLifecycle",
                    package: "swift-service-lifecycle",
                    condition: .when(traits: ["ServiceLifecycle"])
                ),
            ],
            swiftSettings: settings
        ),
        // The page that the server shows, as bytes.
        .target(name: "SupervisorPage", cSettings: [.headerSearchPath(".")]),
        // Empty without the trait Server.
        .target(
            name: "MicroVMServer",
            dependencies: [
                "MicroVM",
                "MicroVMSupervisor",
                "SupervisorPage",
                .product(name: "SystemPackage", package: "swift-system"),
                .product(name: "Logging", package: "swift-log", condition: .when(traits: ["Logging", "Server"])),
                .product(
                    name: "ServiceLifecycle",
                    package: "swift-service-lifecycle",
                    condition: .when(traits: ["ServiceLifecycle", "Server"])
                ),
                .product(name: "Hummingbird", package: "hummingbird", condition: .when(traits: ["Server"])),
                .product(name: "HummingbirdCore", package: "hummingbird", condition: .when(traits: ["Server"])),
                .product(name: "HTTPTypes", package: "swift-http-types", condition: .when(traits: ["Server"])),
                .product(name: "NIOCore", package: "swift-nio", condition: .when(traits: ["Server"])),
                .product(name: "NIOPosix", package: "swift-nio", condition: .when(traits: ["Server"])),
                .product(name: "NIOHTTP1", package: "swift-nio", condition: .when(traits: ["Server"])),
                .product(name: "GRDB", package: "GRDB.swift", condition: .when(traits: ["Server"])),
            ],
            swiftSettings: settings
        ),
        .executableTarget(
            name: "MicroVMCommand",
            dependencies: [
                "CShims",
                "MicroVM",
                "MicroVMSupervisor",
                "MicroVMServer",
                "GuestTestRunner",
                "LinuxKVM",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log", condition: .when(traits: ["Logging"])),
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            swiftSettings: settings
        ),
        .testTarget(
            name: "LinuxKVMTests",
            dependencies: ["LinuxKVM", .product(name: "SystemPackage", package: "swift-system")],
            swiftSettings: settings
        ),
        .target(name: "AllocationCounter", path: "Tests/AllocationCounter"),
        .target(name: "SystemCallCounter", path: "Tests/SystemCallCounter"),
        .target(name: "RawSystemCalls", path: "Tests/RawSystemCalls"),
        .testTarget(
            name: "MicroVMTests",
            dependencies: [
                "MicroVM",
                "LinuxKVM",
                "AllocationCounter",
                "SystemCallCounter",
                "RawSystemCalls",
                .product(name: "SystemPackage", package: "swift-system"),
                .product(name: "Logging", package: "swift-log", condition: .when(traits: ["Logging"])),
                .product(name: "Metrics", package: "swift-metrics", condition: .when(traits: ["Metrics"])),
                .product(name: "MetricsTestKit", package: "swift-metrics", condition: .when(traits: ["Metrics"])),
                .product(name: "Tracing", package: "swift-distributed-tracing", condition: .when(traits: ["Tracing"])),
                .product(
                    name: "InMemoryTracing",
                    package: "swift-distributed-tracing",
                    condition: .when(traits: ["Tracing"])
                ),
            ],
            swiftSettings: settings,
            plugins: ["GuestImages"]
        ),
        .testTarget(
            name: "MicroVMCommandTests",
            dependencies: [
                "MicroVMCommand", "MicroVMServer", "GuestTestRunner", "MicroVM", "LinuxKVM",
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            swiftSettings: settings,
            plugins: ["GuestImages"]
        ),
        .testTarget(
            name: "MicroVMSupervisorTests",
            dependencies: [
                "MicroVMSupervisor", "MicroVM", .product(name: "SystemPackage", package: "swift-system"),
            ],
            swiftSettings: settings,
            plugins: ["GuestImages"]
        ),
        .testTarget(
            name: "MicroVMServerTests",
            dependencies: [
                "MicroVMServer", "MicroVMSupervisor", "MicroVM",
                .product(name: "SystemPackage", package: "swift-system"),
                .product(name: "Yams", package: "Yams", condition: .when(traits: ["Server"])),
            ],
            swiftSettings: settings,
            plugins: ["GuestImages"]
        ),
        .testTarget(
            name: "MicroVMTestingTests",
            dependencies: ["MicroVMTesting", "GuestTestRunner", "MicroVM"],
            swiftSettings: settings,
            plugins: ["GuestImages"]
        ),
        .plugin(name: "GuestImages", capability: .buildTool()),
    ],
    swiftLanguageModes: [.v6],
    cLanguageStandard: .c11
)
