import ArgumentParser

/// How much memory a guest has, as people say it.
struct MemoryOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            """
            The guest's memory: image, stack, arguments and heap. 64MiB unless given, or as much more as leaves 32MiB \
            for the heap.
            """,
            valueName: "size"
        ),
        transform: ByteCount.init(parsing:)
    )
    var memory: ByteCount?

    @Option(
        help: ArgumentHelp("The guest's stack; 1MiB unless given.", valueName: "size"),
        transform: ByteCount.init(parsing:)
    )
    var stack: ByteCount?
}
