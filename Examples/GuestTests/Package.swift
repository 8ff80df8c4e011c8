// swift-tools-version: 6.2
import PackageDescription

let package = Package(
    name: "guest-tests",
    products: [.library(name: "Morse", targets: ["Morse"])],
    dependencies: [.package(name: "swift-microvm", path: "../..")],
    targets: [
        .target(name: "Morse", dependencies: [.product(name: "MicroVM", package: "swift-microvm")]),
        // Only here is Testing imported, by the tests and by MicroVMTesting.
        .testTarget(
            name: "MorseTests",
            dependencies: ["Morse", .product(name: "MicroVMTesting", package: "swift-microvm")]
        ),
    ],
    swiftLanguageModes: [.v6]
)
