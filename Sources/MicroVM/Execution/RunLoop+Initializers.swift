extension RunLoop {
    /// Runs the module's initialisers, all under one limit, as the dynamic loader would: with no arguments to speak of.
    func runInitializers(_ addresses: [UInt64]) throws {
        try beginCall(
            CallOptions(
                timeLimit: configuration.initializerTimeLimit,
                cpuTimeLimit: configuration.initializerCPUTimeLimit
            )
        )
        isInitializing = true
        defer {
            isInitializing = false
            endCall()
        }
        for (index, address) in addresses.enumerated() {
            var writer = argumentWriter()
            // argc, argv, envp.
            for _ in 0..<3 { try writer.appendInteger(0) }
            isLastFunction = index == addresses.count - 1
            try run(function: address, arguments: writer)
        }
    }
}
