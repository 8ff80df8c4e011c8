import CShims
import SystemPackage

/// A stretch of address space whose regions a ``PageFaultHandler`` serves: all sandboxes of a pool.
///
/// A region without a source cannot be accessed at all. Every method may be called from any thread; those that attach
/// and detach one region must follow one another.
final class ServedMemory: Sendable {
    let locator: FaultLocator
    private let service: PageFaultService
    /// Sandbox after sandbox.
    private let regions: [ServedRegion]

    /// Memory that is registered already, and that nobody may access.
    init(_ locator: FaultLocator, channel: FaultChannel, service: PageFaultService) {
        self.locator = locator
        self.service = service
        regions = (0..<locator.sandboxCount * locator.regionCount).map { number in
            let (sandbox, region) = number.quotientAndRemainder(dividingBy: locator.regionCount)
            return ServedRegion(
                addresses: locator.addresses(sandbox: sandbox, region: region),
                index: region,
                granularity: locator.granularity,
                channel: channel,
                service: service
            )
        }
    }

    // MARK: Regions

    /// Serves a region from a source from now on. Whatever was in it is dropped first, and with it any attachment.
    ///
    /// - Parameters:
    ///   - source: its first byte is the region's first; it has the locator's granularity.
    ///   - accessibleCount: how many bytes can be accessed, whole pages of 4 KiB; accesses behind them fail.
    ///   - protection: what may be done with them. A write to memory that is read-only fails without being recorded.
    /// - Throws: ``SandboxError/Code/invalidConfiguration`` for another granularity;
    ///   ``SandboxError/Code/systemCallFailed``; ``SandboxError/Code/closed`` after ``remove()``.
    func attach(
        _ source: PageSource,
        accessibleCount: Int,
        protection: MemoryProtection = .readWrite,
        sandbox: Int,
        region: Int = 0
    ) throws(SandboxError) {
        checkAccessibleCount(accessibleCount)
        guard source.granularity.rawValue == locator.granularity else {
            throw SandboxError(
                .invalidConfiguration,
                """
                The page source is asked for \(source.granularity.rawValue) bytes at once, the memory for \
                \(locator.granularity): give both the same granularity.
                """
            )
        }
        let served = self[sandbox, region]
        if served.isAttached { detach(sandbox: sandbox, region: region) }
        try served.attach(source, accessibleCount: accessibleCount, protection: protection).discard()
    }

    /// Makes a region longer or shorter. What is cut off loses its content, and what is added comes from the source;
    /// pages there that could not be served are tried again when they are accessed. Without an attachment, nothing.
    ///
    /// - Throws: ``SandboxError/Code/systemCallFailed``.
    func setAccessibleCount(_ count: Int, sandbox: Int, region: Int = 0) throws(SandboxError) {
        checkAccessibleCount(count)
        try self[sandbox, region].setAccessibleCount(count)
    }

    private func checkAccessibleCount(_ count: Int) {
        precondition(0...locator.regionSize ~= count, "more can be accessed than there is")
        precondition(count.isMultiple(of: FaultChannel.pageSize), "pages can be accessed or not, never parts of them")
    }

    /// Ends the serving of a region, and drops what is in it. Whoever waits for a page there, or accesses it later,
    /// fails, which is not recorded. No fetch that is under way will change the region any more.
    func detach(sandbox: Int, region: Int = 0) {
        let leftovers = self[sandbox, region].detach()
        // A fault of the old tenant that was read already is not to be taken for one of the next.
        service.settle()
        leftovers.discard()
    }

    // MARK: Failures

    /// Ends every wait for a page of a sandbox at once: the accesses fail, and are recorded as abandoned.
    ///
    /// An access that has not begun to wait when this is called is none of its business, so whoever wants a guest to
    /// stop repeats this together with the kicks until the guest has been left. Signals alone do not do: older kernels
    /// (Linux 6.1 is one) do not let them end a KVM_RUN that waits for a page, and none lets them end an access that
    /// KVM makes on behalf of an instruction which it emulates.
    func abandonFaults(sandbox: Int) {
        // Those that the handler's thread has not got round to.
        service.readMessages()
        for region in 0..<locator.regionCount { self[sandbox, region].abandon().discard() }
    }

    /// The failed access that was recorded, if there is one, and then forgotten. All pages of the sandbox that failed
    /// can be accessed again, and are served, or fail, anew.
    ///
    /// For when KVM_RUN returns EFAULT, and for restoring. Where KVM emulates an instruction, a failed access comes as
    /// an MMIO exit inside the memory slot instead.
    func takeFault(sandbox: Int) -> PageFailure? {
        var first: PageFailure?
        for region in 0..<locator.regionCount {
            let failure = self[sandbox, region].takeFailure()
            first = first ?? failure
        }
        return first
    }

    // MARK: The host's own accesses

    /// Waits for pages before the host itself accesses them: an access that failed would be a signal to the host.
    ///
    /// They stay present until something drops them. Not for the handler's thread, nor for a source.
    ///
    /// - Returns: nil when all of them can be accessed that way; otherwise an error, and ``takeFault(sandbox:)`` says
    ///   more.
    func populate(_ addresses: Range<UInt>, forWriting: Bool) -> Errno? {
        let mask = UInt(FaultChannel.pageSize - 1)
        let start = addresses.lowerBound & ~mask
        let count = ((addresses.upperBound + mask) & ~mask) - start
        let result = shim_populate(UInt64(start), UInt64(count), forWriting ? 1 : 0)
        return result == 0 ? nil : Errno(rawValue: -result)
    }

    // MARK: The end

    /// Ends the serving of all regions, as ``detach(sandbox:region:)`` does. After this, and not before, the memory may
    /// be unmapped or used otherwise; nobody can access it until its protection is changed.
    func remove() { service.remove(self) }

    /// Lets go of all regions that overlap with some addresses.
    func close(_ addresses: Range<UInt>? = nil) -> [ServedRegion.Leftovers] {
        regions.compactMap { region in
            guard let addresses else { return region.close(isUnmapped: false) }
            return region.addresses.overlaps(addresses) ? region.close(isUnmapped: true) : nil
        }
    }

    /// Returns when whatever is being done to a region's memory is done.
    func settle() {
        for region in regions { region.settle() }
    }

    /// Whether anything is left to be served.
    var isOpen: Bool { regions.contains(where: \.isOpen) }

    subscript(sandbox: Int, region: Int) -> ServedRegion {
        precondition(0..<locator.sandboxCount ~= sandbox && 0..<locator.regionCount ~= region, "no such region")
        return regions[sandbox * locator.regionCount + region]
    }
}
