internal import CShims
public import SystemPackage

/// The system's KVM device: what it can do, and where virtual machines come from.
///
/// The handle owns its file descriptor and closes it when it goes. Virtual machines made from it live on without it.
public struct KVM: ~Copyable, Sendable {
    /// Where the device is found on Linux.
    public static let defaultPath: FilePath = "/dev/kvm"

    /// The only version of the interface there has been since Linux 2.6.22 (KVM API, 4.1).
    public static let expectedAPIVersion: Int32 = 12

    let fileDescriptor: OwnedFileDescriptor

    /// Opens the device, read-write and closed on exec, and checks its version.
    ///
    /// - Parameter path: the device.
    /// - Throws: what `open` reports, such as `Errno.noSuchFileOrDirectory` or `Errno.permissionDenied`;
    ///   `Errno.inappropriateIOCTLForDevice` when the path is something else than a KVM device;
    ///   `Errno.notSupported` for another version than ``expectedAPIVersion``.
    ///
    /// The C equivalents are `open` and `KVM_GET_API_VERSION`.
    public init(path: FilePath = KVM.defaultPath) throws(Errno) {
        // Safe: the string is read during the call only.
        let result = unsafe path.withPlatformString { path in unsafe shim_kvm_open(path) }
        let fileDescriptor = try OwnedFileDescriptor(result: result)
        let version = try valueOrErrno(shim_kvm_get_api_version(fileDescriptor.rawValue))
        guard version == KVM.expectedAPIVersion else { throw Errno.notSupported }
        self.fileDescriptor = fileDescriptor
    }

    /// The version of the interface.
    ///
    /// The C equivalent is `KVM_GET_API_VERSION` (KVM API, 4.1).
    public func apiVersion() throws(Errno) -> Int32 {
        try valueOrErrno(shim_kvm_get_api_version(fileDescriptor.rawValue))
    }

    /// What the system says of a capability: 0 where it is absent, otherwise 1 or a number whose meaning is the
    /// capability's own, such as a limit or a size.
    ///
    /// The C equivalent is `KVM_CHECK_EXTENSION` (KVM API, 4.4).
    public func check(_ capability: Capability) -> Int32 {
        max(0, shim_kvm_check_extension(fileDescriptor.rawValue, capability.rawValue))
    }

    /// The processor features that this KVM can give to a guest, as entries for ``VirtualCPU/setCPUID(_:)``.
    ///
    /// - Throws: `Errno.argListTooLong` if there are more than 4,096 of them, which no kernel has.
    ///
    /// The C equivalent is `KVM_GET_SUPPORTED_CPUID` (KVM API, 4.46).
    public func supportedCPUID() throws(Errno) -> [CPUIDEntry] {
        try supportedCPUID(firstCapacity: CPUIDEntry.firstCapacity)
    }

    func supportedCPUID(firstCapacity: Int) throws(Errno) -> [CPUIDEntry] {
        try unsafe CPUIDEntry.read(firstCapacity: firstCapacity) { entries in
            // Safe: the buffer has room for as many entries as its header says.
            unsafe shim_kvm_get_supported_cpuid(fileDescriptor.rawValue, entries)
        }
    }

    /// The size of the memory a virtual CPU shares with its owner, in bytes; for
    /// ``VirtualMachine/createVirtualCPU(identifier:mappingSize:)``.
    ///
    /// The C equivalent is `KVM_GET_VCPU_MMAP_SIZE` (KVM API, 4.5).
    public func virtualCPUMappingSize() throws(Errno) -> Int {
        Int(try valueOrErrno(shim_kvm_get_vcpu_mmap_size(fileDescriptor.rawValue)))
    }

    /// Makes a virtual machine without memory, virtual CPUs or devices.
    ///
    /// Making one waits for other threads and is broken off by any signal; it is then begun again, since nothing of
    /// it has happened yet.
    ///
    /// - Throws: `Errno.noMemory`, `Errno.tooManyOpenFiles`, and whatever else the kernel reports.
    ///
    /// The C equivalent is `KVM_CREATE_VM` with type 0 (KVM API, 4.2).
    public func createVirtualMachine() throws(Errno) -> VirtualMachine {
        while true {
            let result = shim_kvm_create_vm(fileDescriptor.rawValue)
            if result == -Errno.interrupted.rawValue { continue }
            return VirtualMachine(fileDescriptor: try OwnedFileDescriptor(result: result))
        }
    }
}
