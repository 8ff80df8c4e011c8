// swift-tools-version: 6.2
import PackageDescription

let settings: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    .strictMemorySafety(),
]

let package = Package(
    name: "microvm-benchmarks",
    products: [
        .executable(name: "microvm-bench", targets: ["microvm-bench"])
    ],
    dependencies: [
        .package(name: "swift-microvm", path: ".."),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
        .package(url: "https://github.com/apple/swift-system", from: "1.4.0"),
    ],
    targets: [
        .target(name: "RawLoops", dependencies: ["BenchmarkThreads"]),
        .target(name: "BenchmarkThreads"),
        .target(name: "AllocationCounter"),
        .executableTarget(
            name: "microvm-bench",
            dependencies: [
                "RawLoops",
                "BenchmarkThreads",
                "AllocationCounter",
                .product(name: "MicroVM", package: "swift-microvm"),
                .product(name: "MicroVMSupervisor", package: "swift-microvm"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            swiftSettings: settings,
            plugins: ["BuildGuest"]
        ),
        .plugin(name: "BuildGuest", capability: .buildTool()),
    ],
    swiftLanguageModes: [.v6],
    cLanguageStandard: .gnu11
)
