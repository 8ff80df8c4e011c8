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
        .executable(name: "microvm", targets: ["MicroVMCommand"]),
    ],
    traits: [
        .trait(name: "Metrics", description: "Pools report what they do through swift-metrics."),
        .trait(name: "ServiceLifecycle", description: "Pools are services of swift-service-lifecycle."),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
        .package(url: "https://github.com/apple/swift-system", from: "1.4.0"),
        // Each is fetched and built for those who switch on the trait of its name.
        .package(url: "https://github.com/apple/swift-metrics", from: "2.5.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.6.0"),
    ],
    targets: [
        .target(name: "CShims", path: "CShims"),
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
                .product(name: "SystemPackage", package: "swift-system"),
                .product(name: "Metrics", package: "swift-metrics", condition: .when(traits: ["Metrics"])),
                .product(
                    name: "ServiceLifecycle",
                    package: "swift-service-lifecycle",
                    condition: .when(traits: ["ServiceLifecycle"])
                ),
            ],
            swiftSettings: settings
        ),
        .executableTarget(
            name: "MicroVMCommand",
            dependencies: [
                "MicroVM",
                "LinuxKVM",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
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
        .testTarget(
            name: "MicroVMTests",
            dependencies: [
                "MicroVM",
                "LinuxKVM",
                "AllocationCounter",
                "SystemCallCounter",
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            swiftSettings: settings,
            plugins: ["GuestImages"]
        ),
        .testTarget(
            name: "MicroVMCommandTests",
            dependencies: [
                "MicroVMCommand", "MicroVM", "LinuxKVM", .product(name: "SystemPackage", package: "swift-system"),
            ],
            swiftSettings: settings,
            plugins: ["GuestImages"]
        ),
        .plugin(name: "GuestImages", capability: .buildTool()),
    ],
    swiftLanguageModes: [.v6],
    cLanguageStandard: .c11
)
