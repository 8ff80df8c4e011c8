/// What a pool has and what it has done.
public struct SandboxPoolStatistics: Sendable, Hashable {
    /// The sandboxes there are, idle, lent and being made.
    public var sandboxes = 0
    /// Those that are ready to be lent.
    public var idle = 0
    /// How many callers have one, those for whom one is being made included. The rest is being restored.
    public var inUse = 0
    /// How many callers wait for one.
    public var waiting = 0

    /// How many times a sandbox has been lent.
    public var loans = 0
    /// How many times one has been restored after a loan. Each loan that is over has ended in a restore or in a
    /// sandbox that was closed.
    public var restores = 0
    /// The pages of 4 KiB that restores have copied.
    public var pagesCopied = 0
    /// The pages of 4 KiB that restores have given back to the operating system.
    public var pagesDropped = 0
    /// How many loans ended with a call still under way, which was killed.
    public var killedReturns = 0
    /// How many sandboxes came back poisoned, those of killed calls included.
    public var poisonedReturns = 0
    /// How many sandboxes were closed because they could not be restored.
    public var failedRestores = 0
    /// How many callers were turned away with ``SandboxError/Code/poolExhausted``.
    public var refusals = 0
}
