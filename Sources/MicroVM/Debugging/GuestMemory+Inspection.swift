import CShims

/// Access to all there is of a guest's memory, whatever the guest itself may do there: for debuggers and reports.
///
/// Nothing is lent, and all copying is done by the kernel: pages of a file that has become shorter are no danger, and
/// a host function may be at work at the same time.
extension GuestMemory {
    /// The bytes from an address on, as far as there are any without a gap.
    func inspect(at address: UInt64, count: Int) -> [UInt8] {
        let available = min(UInt64(max(count, 0)), inspectableCount(at: address))
        guard available > 0 else { return [] }
        return unsafe [UInt8](unsafeUninitializedCapacity: Int(available)) { buffer, initialized in
            let bytes = UnsafeMutableRawBufferPointer(buffer)
            if unsafe copy(bytes, from: address) {
                initialized = bytes.count
                return
            }
            // Up to the page that is not to be had.
            while initialized < bytes.count {
                let place = address + UInt64(initialized)
                let chunk = min(Int(AddressSpace.pageSize - place % AddressSpace.pageSize), bytes.count - initialized)
                let part = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[initialized..<initialized + chunk])
                guard unsafe copy(part, from: place) else { return }
                initialized += chunk
            }
        }
    }

    private func copy(_ destination: UnsafeMutableRawBufferPointer, from address: UInt64) -> Bool {
        unsafe (try? copyOut(address, into: destination)) != nil
    }

    /// Writes bytes where there are any, and nothing where there are not enough of them.
    func patch(_ bytes: [UInt8], at address: UInt64) -> Bool {
        guard UInt64(bytes.count) <= inspectableCount(at: address) else { return false }
        isPatched = true
        return unsafe bytes.span.bytes.withUnsafeBytes { bytes in
            unsafe (try? copyIn(bytes, to: address)) != nil
        }
    }

    /// How many bytes there are from an address on, without a gap.
    private func inspectableCount(at address: UInt64) -> UInt64 {
        var end = address
        // Regions are in ascending order, and those that belong together touch.
        for region in addressSpace.regions where region.range.contains(end) {
            let regionEnd = accessibleEnd(of: region.range)
            guard end < regionEnd else { break }
            end = regionEnd
            if regionEnd < region.range.upperBound { break }
        }
        return end - address
    }

    /// Where the part ends that there is of a region for now.
    private func accessibleEnd(of region: Range<UInt64>) -> UInt64 {
        if region.lowerBound == addressSpace.heap.lowerBound { return heapEnd }
        guard let window = addressSpace.window(at: region.lowerBound) else { return region.upperBound }
        return region.lowerBound + (windows[window]?.size ?? 0)
    }
}
