/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.locks

import dev.tideline.core.Events
import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.Spec
import dev.tideline.core.StillClock
import dev.tideline.core.Tonnes
import dev.tideline.core.into
import dev.tideline.ships.Ship
import dev.tideline.ships.ShipId
import dev.tideline.ships.ShipKind

/** Describes who goes through the lock together and who waits for the next filling. */
class LockKeeperSpec : Spec({
    val dawn = Moment.of(day = 5, hour = 5, minute = 30)

    fun keeper(): LockKeeper =
        LockKeeper(
            lock = Lock(id = LockId("east"), length = Metres(120.0), turnaround = Span.ofMinutes(20)),
            events = Events(),
            clock = StillClock(dawn),
        )

    fun trawler(name: String, length: Double): Ship =
        Ship(
            id = ShipId(name),
            name = name,
            kind = ShipKind.FISHING,
            length = Metres(length),
            draught = Metres(3.0),
            deadweight = Tonnes(600.0),
        )

    case("a short ship may overtake a long one that does not fit any more") {
        val keeper = given("a queue of three") { keeper() }
        keeper.join(trawler("first", 70.0), LockSide.SEAWARD)
        keeper.join(trawler("long", 80.0), LockSide.SEAWARD)
        keeper.join(trawler("small", 30.0), LockSide.SEAWARD)
        val locking = keeper.lockThrough()
        expect(locking.into { it.ships }).toGive(listOf(ShipId("first"), ShipId("small")))
        expect(keeper.countWaiting(LockSide.SEAWARD)).toBe(1)
    }

    case("an empty side makes the chamber turn first") {
        val keeper = given("a ship that wants to leave") { keeper() }
        keeper.join(trawler("leaver", 60.0), LockSide.LANDWARD)
        expect(keeper.lockThrough().into { it.window.from }).toGive(dawn + Span.ofMinutes(20))
    }

    case("a ship that is too long or that waits already is turned away") {
        val keeper = given("an empty lock") { keeper() }
        expect(keeper.join(trawler("giant", 118.0), LockSide.SEAWARD)).toBeRefusedFor(Reason.INVALID)
        expect(keeper.join(trawler("patient", 40.0), LockSide.SEAWARD)).toGive(1)
        expect(keeper.join(trawler("patient", 40.0), LockSide.LANDWARD)).toBeRefusedFor(Reason.DUPLICATE)
        expect(keeper().lockThrough()).toBeRefusedFor(Reason.NOT_FOUND)
    }
})
